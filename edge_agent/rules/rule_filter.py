"""One source's batches through the rules of its stream: which samples go on, and how valuable each is."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from typing import Any, Protocol

import structlog

from catchment.rules.evaluator import EdgeEvaluator
from catchment.rules.rule import SqlExpression, columns_read
from edge_agent.inspect import BatchInspector
from edge_agent.rules.upload_choice import LEFT_OUT, UploadChoice, with_shares
from edge_agent.sources.api import SampleBatch
from schemas.contract import ColumnType, Contract
from schemas.edge_policy import EdgeAction, EdgeInspect, EdgePolicy, EdgeRule, upload_columns
from schemas.envelope import EVENT_TIME
from schemas.errors import EdgeRuleError

# Which samples a share keeps: decided by a hash of the sample itself, so that the same sample always fares the same. Pure.
_SPAN = 2**64


def chance(key: bytes, row: Sequence[object]) -> float:
    """A number from 0 to below 1, evenly spread over samples and fixed for each.

    A larger share keeps all that a smaller one does, because both compare the same number.
    """
    digest = blake2b(repr(row).encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SPAN


def chances(device: str, stream: str, batch: SampleBatch) -> Callable[[int], float]:
    """The number of each row: a hash of device, stream, event time and values. Payloads are not read for it."""
    key = blake2b(f"{device}/{stream}".encode(), digest_size=16).digest()
    columns = [batch.columns[name] for name in sorted(batch.columns)]

    def of(row: int) -> float:
        return chance(key, (batch.event_time_us[row], *(values[row] for values in columns)))

    return of


# What becomes of each sample, given what the rules say of it. Pure.
RuleResults = Sequence[bool | None]
REASON_PREFIX = "rule:"


@dataclass(slots=True)
class Decisions:
    """The rows kept, by priority in the order of the batch, and how many each rule left out."""

    kept: dict[int, list[int]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def decide(
    rules: Sequence[EdgeRule],
    results: Sequence[RuleResults],
    rows: int,
    priority: int,
    filled: float,
    chance: Callable[[int], float],
) -> Decisions:
    """Decide about every row.

    Args:
        rules: in order; of keep, drop and sample the first that is true decides, likewise of priority.
        results: for each rule one per row; None (unknown) is not true.
        rows: how many there are.
        priority: of rows no rule speaks of.
        filled: how full the spool is, 0 to 1.
        chance: a fixed number from 0 to below 1 for a row.
    """
    active = [(rule, matches) for rule, matches in zip(rules, results, strict=True) if rule.pressure <= filled]
    choosing = [(rule, matches) for rule, matches in active if rule.action is not EdgeAction.PRIORITY]
    ranking = [(rule, matches) for rule, matches in active if rule.action is EdgeAction.PRIORITY]
    decisions = Decisions()
    for row in range(rows):
        out = _left_out_by(choosing, row, chance)
        if out is not None:
            reason = REASON_PREFIX + out.id
            decisions.left_out[reason] = decisions.left_out.get(reason, 0) + 1
            continue
        row_priority = next((rule.priority for rule, matches in ranking if matches[row]), priority)
        decisions.kept.setdefault(row_priority, []).append(row)
    return decisions


def _left_out_by(rules: Sequence[tuple[EdgeRule, RuleResults]], row: int, chance: Callable[[int], float]) -> EdgeRule | None:
    for rule, matches in rules:
        if not matches[row]:
            continue
        if rule.action is EdgeAction.KEEP:
            return None
        is_kept = rule.action is EdgeAction.SAMPLE and chance(row) < rule.rate
        return None if is_kept else rule
    return None


_DEVICE = "device"

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Filtered:
    """The rest of a batch: samples of each priority, and how many were left out, by reason."""

    groups: tuple[tuple[int, SampleBatch], ...]
    left_out: Mapping[str, int] = field(default_factory=dict)


def whole(batch: SampleBatch, priority: int) -> Filtered:
    """All of it."""
    return Filtered(((priority, batch),) if len(batch) else ())


def _filtered(decisions: Decisions, batch: SampleBatch) -> Filtered:
    """The groups that were decided on."""
    if not decisions.left_out and len(decisions.kept) == 1:
        return Filtered(tuple((priority, batch) for priority in decisions.kept))
    groups = tuple((priority, batch.take(rows)) for priority, rows in sorted(decisions.kept.items()))
    return Filtered(groups, decisions.left_out)


def apply_filter(rule_filter: "RuleFilter | None", batch: SampleBatch, priority: int) -> Filtered:
    """Apply the filter to a batch; without one, keep all of it."""
    return whole(batch, priority) if rule_filter is None else rule_filter(batch)


class RulesInForce(Protocol):
    """The interface to the rules in force."""

    def current(self) -> EdgePolicy | None:
        """The policy in force; the same object as long as it is."""
        ...

    def suspend(self, stream: str, rule: str, reason: str) -> None:
        """A rule of the policy in force cannot be applied."""
        ...

    def uninspected(self, stream: str, inspector: str, samples: int, reason: str) -> None:
        """An inspector could not look at some samples: their columns are null."""
        ...


class RuleFilter:
    """Applies the rules of one stream. Used by its source's thread alone.

    Args:
        book: has the rules.
        contract: of the stream.
        device: this device.
        priority: of samples no rule speaks of.
        filled: how full the spool is, 0 to 1.
        requested: inspectors that the configuration names, next to those of the policy.
        now_s: a clock that never goes back, seconds, for upload budgets.
    """

    def __init__(
        self,
        book: RulesInForce,
        contract: Contract,
        device: str,
        priority: int,
        filled: Callable[[], float],
        requested: Sequence[EdgeInspect] = (),
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._now_s = now_s
        self._upload: UploadChoice | None = None
        self._book = book
        self._contract = contract
        self._device = device
        self._priority = priority
        self._filled = filled
        self._requested = tuple(requested)
        self._inspector = BatchInspector.opened(contract, self._requested)
        self._types = self._known_types()
        self._policy: EdgePolicy | None = None
        self._rules: tuple[EdgeRule, ...] = ()
        self._evaluator: EdgeEvaluator | None = None
        self._logged: set[int] = set()

    def __call__(self, batch: SampleBatch) -> Filtered:
        """Filter a batch. Samples that cannot be evaluated are kept: a faulty rule must not cost a sample."""
        policy = self._book.current()
        if policy is not self._policy:
            self._compile(policy)
        if not len(batch):
            return whole(batch, self._priority)
        inspected = self._inspector(batch)
        batch = inspected.stored
        for failed in inspected.failures:
            self._book.uninspected(self._contract.name, failed.inspector, failed.samples, failed.reason)
        if self._evaluator is None:
            return self._within_budget(whole(batch, self._priority), [list(range(len(batch)))], {})
        try:
            results = self._evaluator.evaluate(self._columns(inspected.for_rules, self._evaluator.columns), len(batch))
        except EdgeRuleError as error:
            self._book.suspend(self._contract.name, "*", f"{error}; such batches are kept whole")
            return whole(batch, self._priority)
        self._tell_suspended(self._evaluator)
        filled = self._filled() if any(rule.pressure for rule in self._rules) else 0.0
        chance = chances(self._device, self._contract.name, batch)
        decisions = decide(self._rules, results, len(batch), self._priority, filled, chance)
        filtered = _filtered(decisions, batch)
        if self._upload is None:
            return filtered
        rows = [rows for _, rows in sorted(decisions.kept.items())]
        return self._within_budget(filtered, rows, self._deciding(results, len(batch), filled))

    def _deciding(self, results: Sequence[RuleResults], rows: int, filled: float) -> dict[int, EdgeRule]:
        """The rule that decides about each row, where one does."""
        choosing = [
            (rule, matches)
            for rule, matches in zip(self._rules, results, strict=True)
            if rule.action is not EdgeAction.PRIORITY and rule.pressure <= filled
        ]
        first = {row: next((rule for rule, matches in choosing if matches[row]), None) for row in range(rows)}
        return {row: rule for row, rule in first.items() if rule is not None}

    def _within_budget(self, filtered: Filtered, rows: Sequence[Sequence[int]], deciding: Mapping[int, EdgeRule]) -> Filtered:
        """What of the filtered samples the upload budget takes, each with its chance. A rule of action keep goes before it.

        Args:
            filtered: what the rules leave.
            rows: for each group of it, the rows of the batch.
            deciding: row -> the rule that decided about it.
        """
        if self._upload is None:
            return filtered
        groups: list[tuple[int, SampleBatch]] = []
        left_out = 0
        for (priority, group), places in zip(filtered.groups, rows, strict=True):
            ruled = {at: deciding[row] for at, row in enumerate(places) if row in deciding}
            forced = frozenset(at for at, rule in ruled.items() if rule.action is EdgeAction.KEEP)
            rates = {at: rule.rate for at, rule in ruled.items() if rule.action is EdgeAction.SAMPLE}
            chosen = self._upload(group, forced, rates)
            left_out += len(group) - len(chosen.rows)
            if chosen.rows:
                taken = group.take(chosen.rows)
                groups.append((priority, replace(taken, columns=with_shares(taken, chosen.shares))))
        counts = {LEFT_OUT: left_out} if left_out else {}
        return Filtered(tuple(groups), {**filtered.left_out, **counts})

    def _compile(self, policy: EdgePolicy | None) -> None:
        self._policy, self._evaluator, self._rules, self._logged = policy, None, (), set()
        self._upload = None if policy is None else self._upload_of(policy)
        stream_rules = () if policy is None else policy.streams.get(self._contract.name, ())
        steps = () if policy is None else policy.inspect.get(self._contract.name, ())
        self._inspector = BatchInspector.opened(self._contract, (*self._requested, *steps))
        self._types = self._known_types()
        sound = [(rule, compiled) for rule in stream_rules if (compiled := self._compiled(rule)) is not None]
        if sound:
            self._rules = tuple(rule for rule, _ in sound)
            self._evaluator = EdgeEvaluator([compiled for _, compiled in sound])
            self._tell_suspended(self._evaluator)
        if stream_rules:
            log.info("edge_rules_active", stream=self._contract.name, rules=len(self._rules))

    def _upload_of(self, policy: EdgePolicy) -> UploadChoice | None:
        """What keeps the stream's budget; None, and logged, where its contract here lacks a column for it."""
        rule = policy.uploads.get(self._contract.name)
        if rule is None:
            return None
        known = {column.name for column in self._contract.columns}
        if missing := [name for name in upload_columns(rule) if name not in known]:
            reason = f"the contract here lacks {', '.join(missing)}; every sample is kept"
            self._book.suspend(self._contract.name, "upload", reason)
            return None
        return UploadChoice(rule, self._device, self._contract.name, self._now_s)

    def _compiled(self, rule: EdgeRule) -> SqlExpression | None:
        """The rule as the engine takes it; None, and logged, where it would mean something else here than in the core."""
        try:
            names = columns_read(rule.sql)
            problem = self._problem(rule, names)
            if not problem:
                return SqlExpression(rule.sql, rule.parameters, rule.columns or {name: self._types[name] for name in names})
        except EdgeRuleError as error:
            problem = str(error)
        self._book.suspend(self._contract.name, rule.id, problem)
        return None

    def _problem(self, rule: EdgeRule, names: frozenset[str]) -> str:
        for name in sorted(names):
            if name not in self._types:
                why = "".join(f"; {reason}" for reason in self._inspector.refused)
                return f"it reads {name}, which a device does not know of {self._contract.name}{why}"
            if rule.columns.get(name, self._types[name]) is not self._types[name]:
                return f"it reads {name} as {rule.columns[name]}; the contract here has {self._types[name]}"
        return ""

    def _known_types(self) -> dict[str, ColumnType]:
        types = {column.name: column.type for column in (*self._contract.columns, *self._inspector.columns)}
        return {**types, EVENT_TIME: ColumnType.TIMESTAMP, _DEVICE: ColumnType.STRING}

    def _tell_suspended(self, evaluator: EdgeEvaluator) -> None:
        for index in evaluator.suspended.keys() - self._logged:
            self._logged.add(index)
            self._book.suspend(self._contract.name, self._rules[index].id, evaluator.suspended[index])

    def _columns(self, batch: SampleBatch, wanted: Mapping[str, ColumnType]) -> dict[str, Sequence[Any]]:
        columns: dict[str, Sequence[Any]] = {name: batch.columns[name] for name in wanted if name in batch.columns}
        if EVENT_TIME in wanted:
            columns[EVENT_TIME] = batch.event_time_us
        if _DEVICE in wanted:
            columns[_DEVICE] = [self._device] * len(batch)
        return columns
