"""Tables for people."""

import time
from collections.abc import Iterator, Sequence

from rich.text import Text

from catchment.runtime.terminal import PlainConsole, PlainTable, joined, stacked, styled
from edge_agent.commands.doctor.findings import Diagnosis, Verdict
from edge_agent.commands.status_reader import Ledger, Status
from edge_agent.health.file import Health
from edge_agent.health.vitals import refusal_text
from schemas.reported import DocumentReport, PolicyReport

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
        for name, said in _sources(health) if status.is_running else ():
            table.add_row(name, said)
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
            if told := list(_reasons(words)):
                table.add_row(name, stacked(told))
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


def show_ledger(ledger: Ledger) -> None:
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
    """What is in force, what is suspended, what was refused."""
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
    Verdict.GOOD: styled("good", "green"),
    Verdict.WARNING: styled("warning", "yellow"),
    Verdict.FAILED: styled("FAILED", "red"),
    Verdict.SKIPPED: styled("skipped", "dim"),
}


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was found about one device, and what to do."""
    console = PlainConsole()
    for finding in diagnosis.findings:
        line = joined(_MARKS[finding.verdict], " ", styled(finding.what, "bold"), f": {finding.said}")
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
