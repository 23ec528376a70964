"""Tables for people."""

import time
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.text import Text

from catchment.runtime.terminal import PlainConsole, PlainTable, joined, stacked, styled
from edge_agent.commands.doctor.findings import CheckResult, Diagnosis
from edge_agent.commands.status_reader import AgentBooks, Status
from edge_agent.health.agent_stats import refusal_text
from edge_agent.health.file import Health
from edge_agent.spool.inspection import SpoolEntry
from edge_agent.trial.result import Trial, TriedColumn
from schemas.reported import DocumentReport, PolicyReport

# A trial as tables for people.
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


# Tables of envelopes, for people.
def show_entries(entries: Sequence[SpoolEntry], in_all: dict[str, int], *, is_cut: bool) -> None:
    """Print envelopes, and how many there are in each state; `is_cut`: as many as the limit allows, there may be more."""
    console = PlainConsole()
    totals = ", ".join(f"{count:,} {state}" for state, count in sorted(in_all.items())) or "none"
    table = PlainTable(title=f"envelopes: {totals}")
    for name in ("id", "stream", "epoch", "seqs", "state", "priority", "bytes", "made at (UTC)", "reason"):
        table.add_column(name, justify="right" if name in ("id", "priority", "bytes") else "left", no_wrap=name == "id")
    for entry in entries:
        made = datetime.fromtimestamp(entry.created_us / 1e6, UTC).isoformat(" ", "seconds")[:19] if entry.created_us else ""
        seqs = f"{entry.first_seq} to {entry.first_seq + entry.count - 1}"
        size = f"{entry.body_bytes + entry.object_bytes:,}"
        table.add_row(
            str(entry.id),
            entry.stream,
            str(entry.epoch),
            seqs,
            entry.state,
            str(entry.priority),
            size,
            made,
            entry.reason,
        )
    console.print(table)
    if is_cut:
        console.print(f"{len(entries):,} are shown; --limit shows more")


_MIB = 1024 * 1024


def show_status(status: Status) -> None:
    """Print one agent's state."""
    console = PlainConsole()
    table = PlainTable(title=f"agent {status.device}", show_header=False)
    table.add_row("running", "yes" if status.is_running else "no")
    health = status.health
    if health is not None:
        table.add_row("last look", f"{max(0.0, time.time() - health.at_ms / 1000):,.0f} s ago")
        table.add_row("sources running", str(health.sources_running if status.is_running else 0))
        for name, reason in _sources(health) if status.is_running else ():
            table.add_row(name, reason)
        table.add_row("connected", "yes" if status.is_running and health.is_connected else "no")
        since = "never" if health.since_ack_s is None else f"{health.since_ack_s:.0f} s before the last look"
        table.add_row("broker took a message", since)
        table.add_row("sent / not taken / sent again", f"{health.sent} / {health.not_sent} / {health.resent}")
        if health.waiting_streams:
            table.add_row("streams that wait", f"{', '.join(health.waiting_streams)}: the broker hangs up on all of them")
        _add_refused(table, health.refused_topics, health.over_share)
        table.add_row("spool", f"{health.used_bytes / _MIB:.1f} of {health.max_bytes / _MIB:.0f} MiB")
        table.add_row("memory", f"{health.rss_bytes / _MIB:.1f} MiB")
        if health.policy is not None:
            table.add_row("rules from the core", _policy(health.policy))
        _add_documents(table, health.documents)
        for name, words in (("refused", health.rejected), ("left out", health.left_out)):
            if reasons := list(_reasons(words)):
                table.add_row(name, stacked(reasons))
        if health.failure:
            table.add_row("failure", styled(health.failure, "red"))
    _add_refusals(table, status)
    table.add_row("samples not settled", f"{status.spooled:,}")
    table.add_row("samples dropped", f"{status.dropped:,}")
    for aside in status.moved_aside:
        table.add_row("damaged spool kept", aside)
    console.print(table)
    if status.parked:
        console.print(_parked(status))


def _sources(health: Health) -> Iterator[tuple[str | Text, str]]:
    """A row for each source, and why those fail that do."""
    for name, state in sorted(health.sources.items()):
        if name in health.failing:
            continue
        yield f"source {state}", name
    for name, reason in sorted(health.failing.items()):
        yield styled("source fails", "red"), f"{name}: {reason}"


def _add_refusals(table: PlainTable, status: Status) -> None:
    for stream, one in status.refused.items():
        name = styled("refused by the core", "red") if one.is_total else Text("refused by the core")
        table.add_row(name, refusal_text(stream, one))


def _add_refused(table: PlainTable, refused: dict[str, str], over_share: str) -> None:
    """Add a row for each topic or filter that the broker refuses, and one for what the core does not take."""
    if over_share:
        table.add_row(styled("over its share", "yellow"), over_share)
    for topic, reason in sorted(refused.items()):
        table.add_row(styled("the broker refuses", "red"), f"{topic}: {reason}")


def show_ledger(ledger: AgentBooks) -> None:
    """Print one agent's books."""
    console = PlainConsole()
    table = PlainTable(title=f"books of {ledger.device}: captured = settled + spooled + dropped")
    for name in ("stream", "captured", "settled", "spooled", "dropped", "balanced"):
        table.add_column(name, justify="left" if name in ("stream", "dropped") else "right")
    for books in ledger.books:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(books.dropped.items())) or "0"
        verdict = "yes" if books.is_balanced else styled("NO", "red")
        table.add_row(books.stream, f"{books.captured:,}", f"{books.settled:,}", f"{books.spooled:,}", dropped, verdict)
    console.print(table)
    epochs = PlainTable(title="epochs not settled in full")
    for name in ("stream", "epoch", "next seq", "open", "dropped ranges"):
        epochs.add_column(name, justify="right" if name == "next seq" else "left")
    for epoch in ledger.epochs:
        ranges = ", ".join(f"[{gone.low}, {gone.high}) {gone.reason}" for gone in epoch.dropped[:8])
        more = f" and {len(epoch.dropped) - 8} more" if len(epoch.dropped) > 8 else ""
        epochs.add_row(epoch.stream, str(epoch.epoch), f"{epoch.next_seq:,}", "no" if epoch.closed else "yes", ranges + more)
    console.print(epochs)


def _reasons(counts: dict[str, dict[str, int]]) -> Iterator[str]:
    """A line for each source and reason, since the agent started."""
    for source, reasons in sorted(counts.items()):
        for reason, count in sorted(reasons.items()):
            yield f"{count:,} {source}: {reason}"


def _policy(policy: PolicyReport) -> Text:
    """Describe the rules in force, suspended and refused."""
    words = [joined(f"version {policy.version}" if policy.version else "none yet")]
    words += [joined(styled("suspended", "red"), f" {name}: {reason}") for name, reason in sorted(policy.suspended.items())]
    blind = sorted(policy.uninspected.items()) if policy.uninspected else []
    words += [joined(styled("not inspected", "yellow"), f" {name}: {samples:,}") for name, samples in blind]
    if policy.refused:
        words.append(joined(styled(f"{policy.refused} refused", "red"), f", the last: {policy.reason}"))
    return stacked(words)


def _add_documents(table: PlainTable, documents: Sequence[DocumentReport]) -> None:
    """Add a row for each kind of orders: what was taken, what was refused, and why the last one was not taken."""
    for document in documents:
        words: list[str | Text] = [f"counter {document.counter}" if document.counter else "none yet"]
        words += [styled(f"{document.refused} refused", "red")] if document.refused else []
        words += [document.reason] if document.reason else []
        table.add_row(f"orders: {document.kind}", stacked(words))


_MARKS = {
    CheckResult.GOOD: styled("good", "green"),
    CheckResult.WARNING: styled("warning", "yellow"),
    CheckResult.FAILED: styled("FAILED", "red"),
    CheckResult.SKIPPED: styled("skipped", "dim"),
}


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was found about one device, and what to do."""
    console = PlainConsole()
    for finding in diagnosis.findings:
        line = joined(_MARKS[finding.verdict], " ", styled(finding.what, "bold"), f": {finding.message}")
        console.print(line, highlight=False, soft_wrap=True)
        if finding.fix:
            console.print(joined("         ", styled("fix:", "bold"), f" {finding.fix}"), highlight=False, soft_wrap=True)


def _parked(status: Status) -> PlainTable:
    table = PlainTable(title="parked: these cannot be sent as things are")
    for name in ("stream", "epoch", "seqs", "reason"):
        table.add_column(name)
    for entry in status.parked:
        seqs = f"{entry.first_seq} to {entry.first_seq + entry.count - 1}"
        table.add_row(entry.stream, str(entry.epoch), seqs, entry.reason)
    return table
