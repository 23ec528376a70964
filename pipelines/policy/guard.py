"""Rules with a budget of time: a policy that takes more is suspended and reported, the others and the rows go on.

The bounds of the language keep the cost of almost every rule in proportion to the rows, so these are judged in this process.
Regular expressions are the exception: linear too, but with a factor that the pattern's author chooses. Policies that use
them are judged in a process of their own, which is killed when its time is over.
"""

import os
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from catchment.runtime.worker.limits import MAX_FRAME_BYTES, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Outcome, Refused, TooLate
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.errors import RefusedError
from pipelines.expressions import ir
from pipelines.inspect.suspended import HINT, Suspension
from pipelines.policy.engine import CompiledRule, Tagger, TagLists, in_words, lists_of
from pipelines.policy.worker import encode_options, encode_request
from schemas.contract import Contract
from schemas.policy import Policy

log = structlog.get_logger(__name__)
_Bools: TypeAlias = npt.NDArray[np.bool_]
_TARGET = "pipelines.policy.worker:open_judge"
_LIMITS = WorkerLimits(start_timeout_s=120.0, max_request_bytes=MAX_FRAME_BYTES, max_answer_bytes=MAX_FRAME_BYTES)


@dataclass(frozen=True, slots=True)
class Budget:
    """The time that one policy may take for one table: a start, and a share for each row."""

    start_ms: float = 10_000
    us_per_row: float = 50

    def seconds(self, rows: int) -> float:
        """For that many rows."""
        return self.start_ms / 1e3 + rows * self.us_per_row / 1e6


class PolicyBook(Protocol):
    """The interface to the suspended policies, kept for every process and every start."""

    def policy(self, label: str) -> Suspension | None:
        """Return the reason why a policy is suspended; None if it is not."""
        ...

    def suspend_policy(self, label: str, stream: str, reason: str) -> None:
        """Keep a policy from giving tags."""
        ...


class WorkerDiedError(Exception):
    """The process ended, by our hand because it was late, or otherwise. Never leaves this module."""

    def __init__(self, message: str, *, is_late: bool = False) -> None:
        super().__init__(message)
        self.is_late = is_late


@dataclass(slots=True)
class SandboxedTagger:
    """A tagger whose risky policies run in a process that is killed when they take too long.

    `suspended` tells, by `<policy>@<version>`, why a policy gives no tags any more: what `book` keeps, and without a book what
    this process has seen. It holds for that version: a changed policy is tried again. With `is_strict` nothing is suspended:
    what takes more than its budget is refused.
    """

    whole: Tagger
    inline: Tagger
    risky: tuple[tuple[Policy, frozenset[str]], ...]
    budget: Budget
    book: PolicyBook | None = None
    is_strict: bool = False
    suspended: dict[str, str] = field(default_factory=dict)
    _worker: "RuleWorker | None" = None
    _lock: threading.Lock = field(default_factory=threading.Lock)

    @classmethod
    def compile(
        cls,
        policies: Iterable[Policy],
        contract: Contract,
        budget: Budget | None = None,
        book: PolicyBook | None = None,
        *,
        is_strict: bool = False,
    ) -> Self:
        """As `Tagger.compile`.

        Raises:
            ExpressionError: a rule is not in the language or does not fit the contract.
        """
        given = tuple(policies)
        whole = Tagger.compile(given, contract)
        sources = {rule.policy for rule in whole.rules if _is_risky(rule)}
        risky = tuple(policy for policy in given if name_of(policy) in sources)
        inline = Tagger.compile([policy for policy in given if name_of(policy) not in sources], contract) if risky else whole
        read = tuple((policy, Tagger.compile([policy], contract).columns) for policy in risky)
        return cls(whole, inline, read, budget or Budget(), book, is_strict)

    @property
    def columns(self) -> frozenset[str]:
        """The columns the rules read."""
        return self.whole.columns

    @property
    def contract(self) -> Contract:
        """The contract the rules were compiled for."""
        return self.whole.contract

    @property
    def rules(self) -> tuple[CompiledRule, ...]:
        """The rules, in the order of the verdicts."""
        return self.whole.rules

    def tag(self, table: pa.Table) -> tuple[pa.ChunkedArray, pa.ChunkedArray]:
        """As `Tagger.tag`; a suspended policy gives no tag.

        Raises:
            RefusedError: the table lacks a column that a rule reads.
        """
        return in_words(self.coded(table))

    def coded(self, table: pa.Table) -> TagLists:
        """As `Tagger.coded`; a suspended policy gives no tag.

        Raises:
            RefusedError: the table lacks a column that a rule reads.
        """
        if not self.risky or not table.num_rows:
            return self.whole.coded(table)
        return lists_of(self.whole.rules, self.verdicts(table), table.num_rows)

    def verdicts(self, table: pa.Table) -> list[_Bools]:
        """As `Tagger.verdicts`; a suspended policy's rules are true nowhere.

        Raises:
            RefusedError: the table lacks a column that a rule reads; or, if strict, a policy is suspended or over its budget.
        """
        if not self.risky or not table.num_rows:
            return self.whole.verdicts(table)
        missing = sorted(self.columns - set(table.column_names))
        if missing:
            raise RefusedError(f"the rules read columns that the table does not have: {', '.join(missing)}")
        found: dict[str, list[_Bools]] = {}
        for rule, hit in zip(self.inline.rules, self.inline.verdicts(table), strict=True):
            found.setdefault(rule.policy, []).append(hit)
        with self._lock:
            for index, (policy, columns) in enumerate(self.risky):
                found[name_of(policy)] = self._judged(index, name_of(policy), table.select(sorted(columns)))
        following = {source: iter(hits) for source, hits in found.items()}
        return [next(following[rule.policy]) for rule in self.whole.rules]

    def close(self) -> None:
        """End the process."""
        with self._lock:
            self._end()

    def _judged(self, index: int, name: str, table: pa.Table) -> list[_Bools]:
        rows = table.num_rows
        count = sum(rule.policy == name for rule in self.whole.rules)
        nothing = [np.zeros(rows, np.bool_)] * count
        if self._is_suspended(name):
            return nothing
        try:
            bits = self._rule_bits(index, table)
        except WorkerDiedError as error:
            if self.is_strict:
                raise RefusedError(f"policy {name}, stream {self.contract.name}: {error}; correct or withdraw it") from error
            self.suspended[name] = str(error)
            self._report(name, rows)
            return nothing
        return list(np.unpackbits(bits, count=count * rows).view(np.bool_).reshape(count, rows))

    def _rule_bits(self, index: int, table: pa.Table) -> npt.NDArray[np.uint8]:
        """The packed verdicts. Where a suspension is kept, a process that somebody else ended is no proof: it is asked again."""
        for is_last in (self.book is None, True):
            try:
                self._worker = self._worker or RuleWorker([policy for policy, _ in self.risky], self.whole.contract)
                return self._worker.ask(index, table, self.budget.seconds(table.num_rows))
            except WorkerDiedError as error:
                self._end()
                if error.is_late or is_last:
                    raise
        raise AssertionError  # the last time either answers or raises

    def _is_suspended(self, name: str) -> bool:
        if self.book is not None:  # another process may have suspended it, or a new version lifted it
            entry = self.book.policy(name)
            self.suspended.pop(name, None)
            if entry is not None:
                self.suspended[name] = entry.reason
        if self.is_strict and name in self.suspended:
            raise RefusedError(f"policy {name} is suspended: {self.suspended[name]}; {HINT}")
        return name in self.suspended

    def _report(self, name: str, rows: int) -> None:
        hint = "its tags are missing from now on; correct or withdraw it, then retag"
        stream, reason = self.whole.contract.name, self.suspended[name]
        log.error("policy_suspended", policy=name, stream=stream, rows=rows, reason=reason, hint=hint)
        if self.book is not None:
            self.book.suspend_policy(name, stream, reason)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class RuleWorker:
    """The process that judges the risky policies; it is killed when it is late."""

    def __init__(self, policies: Sequence[Policy], contract: Contract) -> None:
        options = encode_options(contract, policies)
        threads = {"POLARS_MAX_THREADS": os.environ.get("POLARS_MAX_THREADS") or str(os.cpu_count() or 1)}
        self._process = WorkerProcess(WorkerSpec(target=_TARGET, options=options, limits=_LIMITS, environment=threads))
        try:
            started = self._process.start()
        except OSError as error:
            raise WorkerDiedError(f"the policy's process cannot be started: {error}") from error
        if not isinstance(started, Answered):
            raise _died(started, "did not start")

    def ask(self, index: int, table: pa.Table, seconds: float) -> npt.NDArray[np.uint8]:
        """The verdicts of one policy, packed.

        Raises:
            WorkerDiedError: it took longer, or died otherwise.
        """
        outcome = self._process.request(encode_request(index, table), seconds)
        if isinstance(outcome, Answered):
            return np.frombuffer(outcome.body, np.uint8)
        raise _died(outcome, f"took more than its budget of {seconds:.1f} s for {table.num_rows:,} rows")

    def kill(self) -> None:
        """End it now."""
        self._process.close()


def _died(outcome: Outcome | None, complaint: str) -> WorkerDiedError:
    if isinstance(outcome, Refused):
        return WorkerDiedError(outcome.reason)
    if isinstance(outcome, TooLate):
        return WorkerDiedError(f"the policy {complaint}", is_late=True)
    return WorkerDiedError(f"the policy ended its process ({outcome})")


def name_of(policy: Policy) -> str:
    """`<policy>@<version>`, as it stands next to each tag."""
    return f"{policy.id}@{policy.version}"


def _is_risky(rule: CompiledRule) -> bool:
    waiting = [expression.node for expression in rule.expressions]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ir.Matches):
            return True
        waiting.extend(ir.children(node))
    return False
