"""Tables of envelopes, for people."""

from collections.abc import Sequence
from datetime import UTC, datetime

from catchment.runtime.terminal import PlainConsole, PlainTable
from edge_agent.spool.inspection import Entry


def show_entries(entries: Sequence[Entry], in_all: dict[str, int], *, is_cut: bool) -> None:
    """Print envelopes, and how many there are in each state; `is_cut`: as many as the limit allows, there may be more."""
    console = PlainConsole()
    told = ", ".join(f"{count:,} {state}" for state, count in sorted(in_all.items())) or "none"
    table = PlainTable(title=f"envelopes: {told}")
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
