"""From what a source saw to what may be stored: clock quality, prediction, change report, redaction, in this order."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from edge_agent.capture.predictions import Predictor
from edge_agent.clock_quality import COLUMN, EARLIEST_MS, ClockQuality, ClockWatch
from edge_agent.errors import ConfigError
from edge_agent.sections import ReportConfig
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from schemas.contract import Contract

# Which samples of a telemetry stream are worth reporting: those that say something new. Pure but for its memory.
# A sample is reported when a watched column has left its deadband around the value last reported, when a change-only
# column has another value, when `max_interval_s` of event time has passed, when event time went backwards, or when it is
# the first of its key. The others are counted, not sent.
_MAX_KEYS = 65_536
UNCHANGED = "report: unchanged"


class _Last:
    """The last reported values of one key."""

    __slots__ = ("time_us", "values")

    def __init__(self, time_us: int, values: tuple[Scalar, ...]) -> None:
        self.time_us = time_us
        self.values = values


class ChangeReport:
    """Lets through what says something new.

    Args:
        config: checked against the contract.
        rejects: where the others are counted.
    """

    def __init__(self, config: ReportConfig, rejects: Rejects) -> None:
        self._config = config
        self._rejects = rejects
        self._names = (*config.deadband, *config.change_only)
        self._widths: tuple[float | None, ...] = (*config.deadband.values(), *(None for _ in config.change_only))
        self._interval_us = round(config.max_interval_s * 1e6)
        self._last: dict[tuple[Scalar, ...], _Last] = {}

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The rows worth reporting."""
        rows = len(batch)
        absent: Sequence[Scalar] = [None] * rows
        watched = list(zip(*(batch.columns.get(name, absent) for name in self._names), strict=True))
        keys: Sequence[tuple[Scalar, ...]] = [()] * rows
        if self._config.key:
            keys = list(zip(*(batch.columns.get(name, absent) for name in self._config.key), strict=True))
        kept = [row for row in range(rows) if self._is_news(keys[row], batch.event_time_us[row], watched[row])]
        if len(kept) == rows:
            return batch
        self._rejects.count(UNCHANGED, times=rows - len(kept))
        return batch.take(kept)

    def _is_news(self, key: tuple[Scalar, ...], time_us: int, values: tuple[Scalar, ...]) -> bool:
        last = self._last.get(key)
        if last is None:
            if len(self._last) >= _MAX_KEYS:
                self._last.clear()  # forgetting costs a report too many, remembering without end costs the device
            self._last[key] = _Last(time_us, values)
            return True
        since_us = time_us - last.time_us
        is_due = since_us < 0 or (self._interval_us and since_us >= self._interval_us)
        if not is_due and not any(map(_differs, values, last.values, self._widths)):
            return False
        last.time_us, last.values = time_us, values
        return True


def _differs(now: Scalar, before: Scalar, width: float | None) -> bool:
    if width is None or not isinstance(now, (int, float)) or not isinstance(before, (int, float)):
        return now != before
    return abs(now - before) > width or math.isnan(now) != math.isnan(before)


MIN_KEY_BYTES = 16
_MAX_KEY_BYTES = 4_096


class Step(Protocol):
    """Changes a batch: more columns, other values, fewer rows. The position stays."""

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The batch as it goes on."""
        ...


class Transforms:
    """All steps of one source.

    Args:
        steps: in order.
        rejects: what the steps left out, by reason.
        predictor: the models that look at what the steps leave; they answer on a thread of their own.
        later: the steps after the models have answered.
    """

    def __init__(
        self, steps: tuple[Step, ...], rejects: Rejects, predictor: Predictor | None = None, later: tuple[Step, ...] = ()
    ) -> None:
        self._steps = steps
        self._later = later
        self.predictor = predictor
        self.rejects = rejects

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """Return the part of a batch that may be stored; empty where nothing may or need be. No model is asked."""
        return self.after(self.before(batch))

    def before(self, batch: SampleBatch) -> SampleBatch:
        """The batch as the models get it."""
        return _through(self._steps, batch)

    def after(self, batch: SampleBatch) -> SampleBatch:
        """The part of a batch with its predictions that may be stored."""
        return _through(self._later, batch)


def _through(steps: tuple[Step, ...], batch: SampleBatch) -> SampleBatch:
    for step in steps:
        if not len(batch):
            return batch
        batch = step(batch)
    return batch


def build_transforms(
    contract: Contract,
    report: ReportConfig | None,
    redaction_key: bytes,
    watch: ClockWatch,
    predictor: Predictor | None,
) -> Transforms:
    """The steps that a stream's contract and its source's configuration ask for.

    Raises:
        ConfigError: they ask for what is not there.
    """
    rejects = Rejects(f"stream {contract.name}")
    steps: list[Step] = []
    column = contract.column(COLUMN)
    if column is not None:
        # A contract from before this word existed would refuse it.
        unset = ClockQuality.NONE if not column.allowed or ClockQuality.NONE in column.allowed else ClockQuality.UNSYNCHRONISED
        steps.append(_stamp(watch.judge, unset))
    later: list[Step] = []
    if report is not None:
        report.check_against(contract)
        later.append(ChangeReport(report, rejects))
    if contract.has_redaction:
        # Last, so that nothing can put back what it took away.
        from edge_agent.redaction import BatchRedactor  # noqa: PLC0415 # loaded only where a contract asks for it

        later.append(BatchRedactor(contract, redaction_key, rejects))
    return Transforms(tuple(steps), rejects, predictor, tuple(later))


def read_redaction_key(path: Path | None) -> bytes:
    """The device's key of keyed hashes; empty without a path.

    Raises:
        ConfigError: it cannot be read, or is too short to keep a secret.
    """
    if path is None:
        return b""
    try:
        with path.open("rb") as file:
            key = file.read(_MAX_KEY_BYTES).strip()
    except OSError as error:
        raise ConfigError(f"redaction.key {path}: {error.strerror}; make one: openssl rand -hex 32") from error
    if len(key) < MIN_KEY_BYTES:
        raise ConfigError(f"redaction.key {path} has fewer than {MIN_KEY_BYTES} bytes; make one: openssl rand -hex 32")
    return key


def _stamp(judge: Callable[[], ClockQuality], unset: ClockQuality) -> Step:
    def stamp(batch: SampleBatch) -> SampleBatch:
        if COLUMN in batch.columns:
            return batch
        if not batch.agent_clock:
            return batch.with_columns({COLUMN: [str(ClockQuality.DEVICE)] * len(batch)})
        judged = judge()
        words = {True: str(unset), False: str(unset if judged is ClockQuality.NONE else judged)}
        limit_us = EARLIEST_MS * 1000
        return batch.with_columns({COLUMN: [words[time_us < limit_us] for time_us in batch.event_time_us]})

    return stamp
