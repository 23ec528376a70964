"""Run the loop as a process: one loop on a lake, its workers, its heartbeats, and bounded retries of a failing run."""

import os
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import islice
from threading import Event

import structlog

from catchment.runtime.clock import Clock, doubled_s
from pipelines.config import CoreConfig
from pipelines.contracts.registry import warn_of_retention
from pipelines.errors import FaultError, PipelineError, RetryLaterError
from pipelines.heartbeat import Heartbeats, ProcessHealth, starting
from pipelines.ingest.chips.loop import ChipLoop, ChipThread
from pipelines.ingest.graph import worker_pool
from pipelines.ingest.loop import IN_PROCESS, RunLoop, only_loop
from pipelines.ingest.receipt_sender import ReceiptSender
from pipelines.lake.lake import lake_of
from pipelines.lake.workplace import scratch
from pipelines.refusals import broker_client_context
from pipelines.runners.engine import Engine, RunnerKind
from pipelines.runners.run import opened

MAX_FAULTS = 3
MAX_TRIES = 20
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


MAX_WARNINGS = 10

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class RetryBudget:
    """Consecutive failures. An internal error is retried few times, an unavailable resource more often."""

    count: int = 0
    faults: int = 0
    total: int = 0
    trouble: str = ""

    def failed(self, error: PipelineError) -> float:
        """Take a failure in; the seconds to wait before the next try.

        Raises:
            PipelineError: `error` itself, once it was met too often in a row: the supervisor sees the process fall, and says so.
        """
        self.count += 1
        self.total += 1
        self.trouble = str(error)
        self.faults += isinstance(error, FaultError)
        if self.faults >= MAX_FAULTS or self.count >= MAX_TRIES:
            raise error
        return doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, self.count - 1)

    def succeeded(self) -> None:
        """A step came to its end."""
        self.count = self.faults = 0
        self.trouble = ""


def run_loop(
    config: CoreConfig,
    stop: Event,
    clock: Clock,
    *,
    once: bool = False,
    engine: Engine = IN_PROCESS,
    after_run: Callable[[int], None] = lambda _: None,
) -> None:
    """Run until stopped, or, with `once`, until nothing waits.

    Args:
        config: the core's configuration.
        stop: set it, and the loop ends after the run in hand.
        clock: the clock.
        once: end when nothing waits.
        engine: where graphs run; its local cluster is kept open until the loop ends.
        after_run: called with the number of each run that was committed, before the next one; must not raise.

    Raises:
        RefusedError: another loop is at work on this lake.
        CorruptLakeError: the lake needs a hand; the message says which.
        FaultError: our own code failed on the same run again and again.
        RetryLaterError: something stayed away through many tries.
    """
    lake, client_id = lake_of(config), f"catchment-run-{os.getpid()}"
    warn_of_retention(config.contracts)
    with ExitStack() as stack:
        check_ours = stack.enter_context(only_loop(lake, stop))
        with starting(lake.root, "run", "loop", clock):
            stack.enter_context(scratch(lake.root, "run"))
            broker_client_context(config.broker)  # what is wrong with its files must stop the start, not the first receipt
            ready = stack.enter_context(opened(engine, config.run.worker_test_s))
            sender = stack.enter_context(ReceiptSender(lake, config.broker, client_id, clock))
            workers = (
                worker_pool(config.run.worker_processes)
                if config.run.worker_processes and ready.kind is RunnerKind.DIRECT
                else None
            )
            if workers:
                workers.start(config.run.worker_processes)
            loop = RunLoop(config, sender, clock, ready, config.run.worker_processes)
            chip_loop = ChipLoop(config, clock, lambda: loop.ledger.run, ready)
            stack.callback(chip_loop.close)
            if workers and not once:
                workers.wait_ready()
        budget, chips = RetryBudget(), ChipThread(chip_loop)
        with Heartbeats(lake, "run", "loop", clock, lambda: _health(loop, budget, chips)):
            if once:
                _turn(loop, budget, config, stop, check_ours, after_run, once=True)
                chips.drain(stop)
                sender.drain()
                return
            with chips:

                def committed(run: int) -> None:
                    chips.wake()
                    after_run(run)

                _turn(loop, budget, config, stop, check_ours, committed)


def _health(loop: RunLoop, budget: RetryBudget, chips: ChipThread) -> ProcessHealth:
    workers = worker_pool.cache_info().currsize
    failing = loop.receipts_failing
    counters = {
        "run": loop.ledger.run,
        "runs": loop.runs,
        "failures": budget.total,
        "rules_errors": loop.rules.errors,
        "rules_reloads": loop.rules.reloads,
        "rules_broken": float(bool(loop.rules.broken)),
        "segments_skipped": loop.segments_skipped,
        "receipts_pending": loop.receipts_pending,
        "receipts_failing": len(failing),
        "worker_deaths": worker_pool(loop.worker_count).deaths if workers else 0,
        "cuts": chips.loop.cuts,
        "cuts_failed": chips.failures,
        "cutter_deaths": chips.loop.deaths,
    }
    warnings = (*_warnings(failing), *([f"slides are not cut: {chips.trouble[:300]}"] if chips.trouble else []))
    return ProcessHealth(not budget.trouble, budget.trouble or loop.rules.broken, counters, warnings)


def _warnings(failing: Mapping[str, str]) -> tuple[str, ...]:
    shown = [
        f"the receipt of device {device} is not published: {why[:300]}" for device, why in islice(failing.items(), MAX_WARNINGS)
    ]
    left = len(failing) - len(shown)
    return (*shown, f"the receipts of {left} more devices are not published") if left else tuple(shown)


def _turn(
    loop: RunLoop,
    budget: RetryBudget,
    config: CoreConfig,
    stop: Event,
    check_ours: Callable[[], None],
    committed: Callable[[int], None],
    *,
    once: bool = False,
) -> None:
    while not stop.is_set():
        check_ours()
        try:
            busy = loop.step()
        except (RetryLaterError, FaultError) as error:
            pause_s = budget.failed(error)
            log.warning("run_retried", run=loop.ledger.run + 1, reason=str(error), budget=budget.count, again_in_s=pause_s)
            stop.wait(pause_s)
            continue
        budget.succeeded()
        if busy:
            committed(loop.ledger.run)
            continue
        if once:
            return
        stop.wait(config.run.interval_ms / 1_000)
