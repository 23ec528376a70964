"""A trial as tables for people."""

from collections.abc import Sequence
from typing import Any

from rich import box

from catchment.runtime.terminal import PlainConsole, PlainTable, styled
from edge_agent.trial.result import Trial, TriedColumn

_MAX_CELL_CHARS = 40
_MAX_REFUSED = 10


def show_trials(trials: Sequence[Trial]) -> None:
    """Print each source: columns, refusals, what was left out."""
    console = PlainConsole(highlight=False)
    for trial in trials:
        _show(console, trial)


def _show(console: PlainConsole, trial: Trial) -> None:
    head = f"{trial.kind} -> {trial.stream} (contract {trial.contract_version}): {len(trial.samples):,} samples"
    console.print(styled(head, "bold"))
    if trial.failure:
        console.print(styled(f"fails: {trial.failure}", "red"), soft_wrap=True)
    if trial.samples:
        console.print(_columns(trial))
        empty = [column.name for column in trial.columns if column not in _shown(trial)]
        if empty:
            console.print(styled(f"never filled: {', '.join(empty)}", "dim"), soft_wrap=True)
        times = [sample.event_time for sample in trial.samples]
        console.print(styled(f"event time: {times[0]} to {times[-1]}"), soft_wrap=True)
    elif not trial.failure:
        console.print("nothing came in time; give a live source longer with --wait-s", soft_wrap=True)
    _show_refused(console, trial)
    for words, counts in (("not made a sample or value here", trial.rejected), ("left out", trial.left_out)):
        for reason, count in sorted(counts.items()):
            console.print(styled(f"{words}: {count:,} {reason}", "yellow"), soft_wrap=True)
    if trial.left_out_names:
        console.print(styled(f"in the source and in no column: {', '.join(trial.left_out_names)}", "yellow"), soft_wrap=True)
    for note in trial.notes:
        console.print(styled(f"note: {note}", "dim"), soft_wrap=True)
    console.print()


def _shown(trial: Trial) -> list[TriedColumn]:
    return [column for column in trial.columns if column.filled or column.is_required]


def _columns(trial: Trial) -> PlainTable:
    table = PlainTable(box=box.SIMPLE_HEAD, pad_edge=False)
    for name in ("column", "type", "from", "filled", "first values"):
        table.add_column(name, overflow="fold")
    for column in _shown(trial):
        filled = f"{column.filled:,} of {len(trial.samples):,}"
        is_bad = column.is_required and column.filled < len(trial.samples)
        values = ", ".join(_cell(value) for value in column.values)
        marked = f"{filled}, required" if column.is_required else filled
        came_from = column.source_name if column.source_name != column.name else ""
        table.add_row(column.name, column.type, styled(came_from), styled(marked, "red" if is_bad else ""), styled(values))
    payloads = [sample.payload_bytes for sample in trial.samples if sample.payload_bytes is not None]
    if payloads:
        sizes = ", ".join(f"<{size:,} bytes>" for size in payloads[:3])
        table.add_row("payload", "bytes", "", f"{len(payloads):,} of {len(trial.samples):,}", sizes)
    return table


def _show_refused(console: PlainConsole, trial: Trial) -> None:
    refused = [(number, sample) for number, sample in enumerate(trial.samples, 1) if sample.refusal]
    if not trial.samples:
        return
    if not refused:
        console.print("the core would accept all of them" if not trial.failure else "", style="green")
        return
    console.print(styled(f"the core would refuse {len(refused):,} of {len(trial.samples):,}:", "red"))
    for number, sample in refused[:_MAX_REFUSED]:
        console.print(styled(f"  sample {number}: {sample.refusal}"), soft_wrap=True)
    if len(refused) > _MAX_REFUSED:
        console.print(f"  and {len(refused) - _MAX_REFUSED:,} more")


def _cell(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= _MAX_CELL_CHARS else text[: _MAX_CELL_CHARS - 1] + "…"
