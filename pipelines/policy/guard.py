"""Rules with a budget of time: a policy that takes more is suspended and reported, the others and the rows go on.

The bounds of the language keep the cost of almost every rule in proportion to the rows, so these are judged in this process.
Regular expressions are the exception: linear too, but with a factor that the pattern's author chooses. Policies that use
them are judged in a process of their own, which is killed when its time is over.
"""

import atexit
import subprocess
import sys
import threading
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol, Self, TypeAlias

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import structlog

from pipelines.errors import RefusedError
from pipelines.expressions import ir
from pipelines.inspect.suspended import HINT, Suspension
from pipelines.policy.engine import CompiledRule, Tagger, TagLists, in_words, lists_of
from pipelines.policy.worker import READY, REFUSED, VERDICTS, read_frame, write_frame
from schemas.contract import Contract, encode_contract
from schemas.policy import Policy

log = structlog.get_logger(__name__)
_Bools: TypeAlias = npt.NDArray[np.bool_]
_START_S = 120.0


@dataclass(frozen=True, slots=True)
class Budget:
    """What one policy may take of one table: a start, and a share for each row."""

    start_ms: float = 10_000
    us_per_row: float = 50

    def seconds(self, rows: int) -> float:
        """For that many rows."""
        return self.start_ms / 1e3 + rows * self.us_per_row / 1e6


class PolicyBook(Protocol):
    """Where suspended policies are kept for every process and every start."""

    def policy(self, label: str) -> Suspension | None:
        """Why a policy is suspended; None if it is not."""
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
class GuardedTagger:
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
    _worker: "_Worker | None" = None
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
            bits = self._asked(index, table)
        except WorkerDiedError as error:
            if self.is_strict:
                raise RefusedError(f"policy {name}, stream {self.contract.name}: {error}; mend or withdraw it") from error
            self.suspended[name] = str(error)
            self._report(name, rows)
            return nothing
        return list(np.unpackbits(bits, count=count * rows).view(np.bool_).reshape(count, rows))

    def _asked(self, index: int, table: pa.Table) -> npt.NDArray[np.uint8]:
        """The packed verdicts. Where a suspension is kept, a process that somebody else ended is no proof: it is asked again."""
        for is_last in (self.book is None, True):
            try:
                self._worker = self._worker or _Worker([policy for policy, _ in self.risky], self.whole.contract)
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
        hint = "its tags are missing from now on; mend or withdraw it, then retag"
        stream, reason = self.whole.contract.name, self.suspended[name]
        log.error("policy_suspended", policy=name, stream=stream, rows=rows, reason=reason, hint=hint)
        if self.book is not None:
            self.book.suspend_policy(name, stream, reason)

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.kill()
            self._worker = None


class _Worker:
    """The process; who asks it is blocked until it answers or dies, and a timer sees to it that it dies in time."""

    def __init__(self, policies: Sequence[Policy], contract: Contract) -> None:
        command = [sys.executable, "-m", "pipelines.policy.worker"]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        atexit.register(self.kill)
        body = msgspec.json.encode(policies)
        self._talk([(READY, encode_contract(contract)), (READY, body)], _START_S, "did not start")

    def ask(self, index: int, table: pa.Table, seconds: float) -> npt.NDArray[np.uint8]:
        """The verdicts of one policy, packed.

        Raises:
            WorkerDiedError: it took longer, or died otherwise.
        """
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)
        frames = [(VERDICTS, str(index).encode()), (VERDICTS, memoryview(sink.getvalue()).tobytes())]
        kind, body = self._talk(frames, seconds, f"took more than its budget of {seconds:.1f} s for {table.num_rows:,} rows")
        if kind == REFUSED:
            raise WorkerDiedError(body.decode())
        return np.frombuffer(body, np.uint8)

    def kill(self) -> None:
        """End it now."""
        atexit.unregister(self.kill)
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None and not pipe.closed:
                _close(pipe)

    def _talk(self, frames: Sequence[tuple[bytes, bytes]], seconds: float, complaint: str) -> tuple[bytes, bytes]:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        is_late = threading.Event()

        def end() -> None:
            is_late.set()
            self._process.kill()

        timer = threading.Timer(seconds, end)
        timer.daemon = True
        timer.start()
        try:
            for kind, body in frames:
                write_frame(self._process.stdin, kind, body)  # type: ignore[arg-type]  # a pipe is a binary file
            return read_frame(self._process.stdout)  # type: ignore[arg-type]
        except (OSError, EOFError) as error:
            why = complaint if is_late.is_set() else f"ended its process ({self._process.wait(timeout=10)})"
            raise WorkerDiedError(f"the policy {why}", is_late=is_late.is_set()) from error
        finally:
            timer.cancel()


def name_of(policy: Policy) -> str:
    """`<policy>@<version>`, as it stands beside each tag."""
    return f"{policy.id}@{policy.version}"


def _is_risky(rule: CompiledRule) -> bool:
    waiting = [expression.node for expression in rule.expressions]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ir.Matches):
            return True
        waiting.extend(ir.children(node))
    return False


def _close(pipe: object) -> None:
    try:
        pipe.close()  # type: ignore[attr-defined]
    except OSError as error:  # what was still to be flushed has no reader any more
        log.debug("pipe_closed", reason=str(error))
