"""Tables for people."""

import time
from collections.abc import Iterator, Sequence

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from edge_agent.doctor.findings import Diagnosis, Verdict
from edge_agent.looking import Ledger, Status
from schemas.reported import DocumentReport, PolicyReport

_MIB = 1024 * 1024


def show_status(status: Status) -> None:
    """Print one agent's state."""
    console = Console()
    table = Table(title=f"agent {status.device}", show_header=False)
    table.add_row("running", "yes" if status.is_running else "no")
    health = status.health
    if health is not None:
        table.add_row("last look", f"{max(0.0, time.time() - health.at_ms / 1000):,.0f} s ago")
        table.add_row("sources running", str(health.sources_running if status.is_running else 0))
        for name, said in sorted(health.failing.items()) if status.is_running else ():
            table.add_row("[red]source fails[/red]", f"{escape(name)}: {escape(said)}")
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
            if told := "\n".join(_reasons(words)):
                table.add_row(name, told)
        if health.failure:
            table.add_row("failure", f"[red]{escape(health.failure)}[/red]")
    table.add_row("samples not settled", f"{status.spooled:,}")
    table.add_row("samples dropped", f"{status.dropped:,}")
    for aside in status.moved_aside:
        table.add_row("damaged spool kept", aside)
    console.print(table)
    if status.parked:
        console.print(_parked(status))


def _add_refused(table: Table, refused: dict[str, str], over_share: str) -> None:
    """Add a row for each topic or filter that the broker refuses, and one for what the core does not take."""
    if over_share:
        table.add_row("[yellow]over its share[/yellow]", escape(over_share))
    for topic, reason in sorted(refused.items()):
        table.add_row("[red]the broker refuses[/red]", f"{escape(topic)}: {escape(reason)}")


def show_ledger(ledger: Ledger) -> None:
    """Print one agent's books."""
    console = Console()
    table = Table(title=f"books of {ledger.device}: captured = settled + spooled + dropped")
    for name in ("stream", "captured", "settled", "spooled", "dropped", "balanced"):
        table.add_column(name, justify="left" if name in ("stream", "dropped") else "right")
    for books in ledger.books:
        dropped = ", ".join(f"{count:,} {reason}" for reason, count in sorted(books.dropped.items())) or "0"
        verdict = "yes" if books.is_balanced else "[red]NO[/red]"
        table.add_row(books.stream, f"{books.captured:,}", f"{books.settled:,}", f"{books.spooled:,}", dropped, verdict)
    console.print(table)
    epochs = Table(title="epochs not settled in full")
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
            yield f"{count:,} {escape(source)}: {escape(reason)}"


def _policy(policy: PolicyReport) -> str:
    """What is in force, what is suspended, what was refused."""
    words = [f"version {policy.version}" if policy.version else "none yet"]
    words += [f"[red]suspended[/red] {escape(name)}: {escape(reason)}" for name, reason in sorted(policy.suspended.items())]
    blind = sorted(policy.uninspected.items()) if policy.uninspected else []
    words += [f"[yellow]not inspected[/yellow] {escape(name)}: {samples:,}" for name, samples in blind]
    if policy.refused:
        words.append(f"[red]{policy.refused} refused[/red], the last: {escape(policy.reason)}")
    return "\n".join(words)


def _add_documents(table: Table, documents: Sequence[DocumentReport]) -> None:
    """Add a row for each kind of orders: what was taken, what was refused, and why the last one was not taken."""
    for document in documents:
        words = [f"counter {document.counter}" if document.counter else "none yet"]
        words += [f"[red]{document.refused} refused[/red]"] if document.refused else []
        words += [escape(document.reason)] if document.reason else []
        table.add_row(f"orders: {escape(document.kind)}", "\n".join(words))


_MARKS = {
    Verdict.GOOD: "[green]good[/green]",
    Verdict.WARNING: "[yellow]warning[/yellow]",
    Verdict.FAILED: "[red]FAILED[/red]",
    Verdict.SKIPPED: "[dim]skipped[/dim]",
}


def show_diagnosis(diagnosis: Diagnosis) -> None:
    """Print what was found about one device, and what to do."""
    console = Console()
    for finding in diagnosis.findings:
        console.print(
            f"{_MARKS[finding.verdict]:<8} [bold]{finding.what}[/bold]: {escape(finding.said)}", highlight=False, soft_wrap=True
        )
        if finding.fix:
            console.print(f"         [bold]fix:[/bold] {escape(finding.fix)}", highlight=False, soft_wrap=True)


def _parked(status: Status) -> Table:
    table = Table(title="parked: these cannot be sent as things are")
    for name in ("stream", "epoch", "seqs", "reason"):
        table.add_column(name)
    for entry in status.parked:
        seqs = f"{entry.first_seq} to {entry.first_seq + entry.count - 1}"
        table.add_row(entry.stream, str(entry.epoch), seqs, escape(entry.reason))
    return table
