"""Preview a policy over committed rows: matches, overlaps, changes against the version in force, conflicts; and the rows for it.

Blocks go in one after another; what is kept is counts and a few example rows, so memory does not grow with the stream.
"""

import os
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from random import Random
from threading import get_ident
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipelines.contracts.arrow import private_columns
from pipelines.errors import CorruptLakeError, NotFoundError, RefusedError
from pipelines.lake.commit import LiveFile, live_files
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.workplace import workplace
from pipelines.policy.engine import CompiledRule, Judge
from pipelines.policy.retag import completed
from schemas.policy import Policy

KEY = ("device", "epoch", "seq")
CHIP = ("spec", "chip_index")
REFERENCES = ("payload_shard", "payload_row", "payload_offset", "payload_length", "payload_sha256")
EXAMPLES = 20
HIDDEN = "(private)"
_Bools = npt.NDArray[np.bool_]
_Row = dict[str, Any]


def row_count(lake: Lake, stream: str) -> int:
    """Count the rows of a stream.

    Raises:
        NotFoundError: there is no such stream.
    """
    return sum(file.rows for file in _files(lake, stream))


def blocks(lake: Lake, stream: str, columns: Collection[str], limit: int | None, seed: int = 0) -> Iterator[pa.Table]:
    """Rows in blocks of a row group, each with those of the columns that it has.

    Args:
        lake: the lake.
        stream: the stream.
        columns: what to read.
        limit: about how many rows, of row groups drawn from the whole stream; None for every row, in the files' order.
        seed: which ones.

    Raises:
        NotFoundError: there is no such stream.
        CorruptLakeError: a file cannot be read.
    """
    files = list(_files(lake, stream))
    if limit is not None:
        Random(seed).shuffle(files)  # noqa: S311  # which rows are looked at is no secret
    left = limit
    with workplace(lake, _look()) as there:
        for number, file in enumerate(files):
            share = None if left is None else max(1, left // (len(files) - number))
            path = there.view().file(stream_table(stream), file.path)
            for block in _read(path, columns, share, seed):
                yield block
                left = None if left is None else left - block.num_rows
            there.evict([path])
            if left is not None and left <= 0:
                return


def sample_row(lake: Lake, stream: str, sample: str) -> pa.Table:
    """The one row of a sample `device/epoch/seq`, or of a chip `device/epoch/seq/spec/number`.

    Raises:
        RefusedError: that is not how a sample is named.
        NotFoundError: there is no such stream or sample.
        CorruptLakeError: a file cannot be read.
    """
    steps = sample.split("/")
    numbers = (steps[1:3], steps[4:])
    if len(steps) not in (len(KEY), len(KEY) + len(CHIP)) or not all(each.isdecimal() for part in numbers for each in part):
        raise RefusedError(
            f"a sample is named device/epoch/seq, such as car-1/7/42, and a chip car-1/7/42/s256/0, not {sample[:80]!r}"
        )
    wanted = (pc.field("device") == steps[0]) & (pc.field("epoch") == int(steps[1])) & (pc.field("seq") == int(steps[2]))
    if len(steps) > len(KEY):
        wanted = wanted & (pc.field("spec") == steps[3]) & (pc.field("chip_index") == int(steps[4]))
    with workplace(lake, _look()) as there:
        for file in _files(lake, stream):
            path = there.view().file(stream_table(stream), file.path)
            try:
                found = pq.read_table(path, filters=wanted, partitioning=None)
            except (pa.ArrowException, OSError) as error:
                raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error
            if found.num_rows:
                return found.slice(0, 1)
    raise NotFoundError(f"stream {stream} has no sample {sample}")


def _look() -> str:
    """A place of this look alone: of a remote lake the files that it reads are fetched there."""
    return f"look-{os.getpid()}-{get_ident()}"


def _files(lake: Lake, stream: str) -> tuple[LiveFile, ...]:
    table = lake.view().table(stream_table(stream))
    if table is None:
        raise NotFoundError(f"there is no stream {stream!r} in {lake.root}; `catchment streams` lists them")
    return live_files(table)


def _read(path: Path, columns: Collection[str], share: int | None, seed: int) -> Iterator[pa.Table]:
    try:
        with pq.ParquetFile(path) as file:
            names = [name for name in file.schema_arrow.names if name in columns]
            groups = list(range(file.num_row_groups))
            if share is not None:
                Random(seed).shuffle(groups)  # noqa: S311  # likewise
            for group in groups:
                block = file.read_row_group(group, columns=names)
                if share is None:
                    yield block
                    continue
                step = max(1, block.num_rows // share)
                picked = block.take(pa.array(range(0, block.num_rows, step))) if step > 1 else block
                yield picked.slice(0, share)
                share -= min(share, picked.num_rows)
                if not share:
                    return
    except (pa.ArrowException, OSError) as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error}); restore it") from error


@dataclass(slots=True)
class PreviewTagCount:
    """One tag of the policy: rows that get it, that had it from the version in force, that gain and that lose it."""

    tag: str
    rows: int = 0
    before: int = 0
    gained: int = 0
    lost: int = 0


@dataclass(slots=True)
class Conflict:
    """Two rules that give one value tag different values to the same row, and the first such row."""

    first: str
    second: str
    rows: int
    example: _Row


@dataclass(frozen=True, slots=True)
class ExampleRow:
    """A row and the tags it would get."""

    row: _Row
    tags: tuple[str, ...]


@dataclass(slots=True)
class Preview:
    """Collects what a policy would do.

    Args:
        policy: the policy.
        tagger: every policy that would be in force, this one among them.
        before: the rules of its version in force; None if there is none.
    """

    policy: Policy
    tagger: Judge
    before: Judge | None = None
    rows: int = 0
    tagged: int = 0
    counts: dict[str, PreviewTagCount] = field(default_factory=dict)
    overlap: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros((0, 0), np.int64))
    conflicts: dict[tuple[str, str], Conflict] = field(default_factory=dict)
    _kept: dict[str, list[ExampleRow]] = field(default_factory=dict)

    @property
    def tags(self) -> tuple[str, ...]:
        """The policy's tags, in the order of its rules; the overlap matrix has them in this order."""
        return tuple(dict.fromkeys(rule.tag for rule in self.policy.rules))

    @property
    def columns(self) -> frozenset[str]:
        """The columns that the rules read, and those that name a row and its payload."""
        read = self.tagger.columns | (self.before.columns if self.before else frozenset())
        return read | set(KEY) | set(CHIP) | set(REFERENCES)

    def take(self, block: pa.Table) -> None:
        """Judge a block of rows."""
        rows = completed(block, self.tagger.contract)
        hits = dict(zip(self.tagger.rules, self.tagger.verdicts(rows), strict=True))
        mine = {rule.tag: hit for rule, hit in hits.items() if rule.policy == self.policy.label}
        self.rows += block.num_rows
        matrix = np.array([mine[tag] for tag in self.tags]) if self.tags else np.zeros((0, block.num_rows), np.bool_)
        self.tagged += int(matrix.any(axis=0).sum()) if len(matrix) else 0
        self._count(mine, rows)
        self._add_overlap(matrix)
        self._find_conflicts(hits, block)
        self._keep_examples(matrix, block)

    def examples(self) -> list[ExampleRow]:
        """Up to twenty rows, as evenly over the tags as they occur."""
        found: list[ExampleRow] = []
        for place in range(EXAMPLES):
            found.extend(kept[place] for kept in self._kept.values() if place < len(kept))
        return found[:EXAMPLES]

    def _count(self, mine: dict[str, _Bools], rows: pa.Table) -> None:
        old: dict[str, _Bools] = {}
        if self.before is not None:
            old = {rule.tag: hit for rule, hit in zip(self.before.rules, self.before.verdicts(rows), strict=True)}
        nobody = np.zeros(rows.num_rows, np.bool_)
        for tag in dict.fromkeys([*mine, *old]):
            count = self.counts.setdefault(tag, PreviewTagCount(tag))
            now, then = mine.get(tag, nobody), old.get(tag, nobody)
            count.rows += int(now.sum())
            count.before += int(then.sum())
            count.gained += int((now & ~then).sum())
            count.lost += int((then & ~now).sum())

    def _add_overlap(self, matrix: npt.NDArray[np.bool_]) -> None:
        if not self.overlap.size:
            self.overlap = np.zeros((len(matrix), len(matrix)), np.int64)
        numbers = matrix.astype(np.float32)  # a block has fewer rows than a float counts exactly
        self.overlap += (numbers @ numbers.T).astype(np.int64)

    def _find_conflicts(self, hits: dict[CompiledRule, _Bools], block: pa.Table) -> None:
        named: dict[str, list[CompiledRule]] = {}
        for rule in hits:
            name, colon, _value = rule.tag.partition(":")
            if colon:
                named.setdefault(name, []).append(rule)
        for rules in named.values():
            for one, other in combinations(rules, 2):
                if one.tag == other.tag or self.policy.label not in (one.policy, other.policy):
                    continue
                both = np.flatnonzero(hits[one] & hits[other])
                if both.size:
                    self._note_conflict(_named(one), _named(other), both, block)

    def _note_conflict(self, one: str, other: str, both: npt.NDArray[np.intp], block: pa.Table) -> None:
        known = self.conflicts.get((one, other))
        if known is None:
            self.conflicts[one, other] = Conflict(one, other, int(both.size), self._row(block, int(both[0])))
        else:
            known.rows += int(both.size)

    def _keep_examples(self, matrix: npt.NDArray[np.bool_], block: pa.Table) -> None:
        for place, tag in enumerate(self.tags):
            kept = self._kept.setdefault(tag, [])
            for index in np.flatnonzero(matrix[place])[: EXAMPLES - len(kept)].tolist():
                tags = tuple(self.tags[each] for each in np.flatnonzero(matrix[:, index]))
                kept.append(ExampleRow(self._row(block, index), tags))

    def _row(self, block: pa.Table, index: int) -> _Row:
        """A row as an example: a preview is shown to others and kept as a page, so private values are not in it."""
        row: _Row = block.slice(index, 1).to_pylist()[0]
        private = private_columns(self.tagger.contract)
        return {name: HIDDEN if name in private and value is not None else value for name, value in row.items()}


def _named(rule: CompiledRule) -> str:
    return f"{rule.tag} of {rule.policy}"
