"""Run the inspectors of one stream over a batch: columns that rules may use, and those of them that are stored.

Pictures are left to a process of their own, which loads the libraries when a step asks for them. Texts are counted here, by the
standard library: the same counts as the core's engine gives. A step's own patterns are for the core alone: here the engine
backtracks, and a pattern could stall the device.
"""

import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import structlog

from edge_agent.errors import ConfigError, SourceError, UninspectableError
from edge_agent.pictures.process import HarmfulPictureError, shared_pictures
from edge_agent.sections import InspectConfig
from edge_agent.sources.api import SampleBatch, Scalar
from schemas.contract import Column, ColumnType, Contract
from schemas.edge_policy import EdgeInspect
from schemas.inspectors import ON_DEVICE, PATTERNS, VERSIONS, device_columns

log = structlog.get_logger(__name__)

MAX_CHARS = 65_536
_COMPILED = tuple(re.compile(pattern) for pattern in PATTERNS.values())
# Where the two engines draw the line between word, space and neither differently, or their Unicode is of another year.
_DIFFERS = re.compile("[\x1c-\x1f]")
_SAME = frozenset({"Lu", "Ll", "Lt", "Lm", "Lo", "Nd", "Pd", "Ps", "Pe", "Pi", "Pf", "Po", "Sm", "Sc", "Sk", "Zs"})


def text_counts(text: str) -> tuple[int, ...]:
    """The values of `schemas.inspectors.TEXT_COLUMNS`, in order.

    Raises:
        UninspectableError: too long for a device, or with characters that the core's engine sorts otherwise.
    """
    if len(text) > MAX_CHARS:
        raise UninspectableError(f"a text of {len(text)} characters is left to the core; a device reads {MAX_CHARS}")
    if _DIFFERS.search(text) or not (text.isascii() or all(_is_same(character) for character in set(text))):
        raise UninspectableError("a text with combining or control characters is left to the core")
    return tuple(sum(1 for _ in pattern.finditer(text)) for pattern in _COMPILED)


def _is_same(character: str) -> bool:
    return character.isascii() or unicodedata.category(character) in _SAME


_Value = str | bytes | Path
_Look = Callable[[_Value], Sequence[Scalar]]


@dataclass(frozen=True, slots=True)
class Seen:
    """The result of an inspector: its columns, how many samples it could not inspect, and the reason of the last one."""

    columns: dict[str, Sequence[Scalar]]
    failures: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Inspector:
    """One step, ready to look.

    Attributes:
        step: what was asked for.
        columns: what it gives.
        look: the values for one payload or text.
    """

    step: EdgeInspect
    columns: tuple[Column, ...]
    look: _Look = field(repr=False)

    def __call__(self, batch: SampleBatch) -> Seen:
        """The columns for a batch; what a sample has already stays."""
        values = batch.columns.get(self.step.column) if self.step.column else batch.payloads
        nothing: tuple[Scalar, ...] = (None,) * len(self.columns)
        rows: list[Sequence[Scalar]] = []
        failures, reason = 0, ""
        for value in values or [None] * len(batch):
            try:
                rows.append(nothing if not isinstance(value, str | bytes | Path) else self.look(value))
            except UninspectableError as error:
                rows.append(nothing)
                failures, reason = failures + 1, str(error)
        found = {column.name: [row[place] for row in rows] for place, column in enumerate(self.columns)}
        return Seen({name: _filled(batch.columns.get(name), column) for name, column in found.items()}, failures, reason)


def open_inspector(step: EdgeInspect, contract: Contract) -> Inspector:
    """Make a step ready.

    Raises:
        ConfigError: a device has no such inspector or version, its libraries are not installed, or the stream has nothing for it.
    """
    if step.use not in ON_DEVICE:
        raise ConfigError(f"inspector {step.use!r} does not run on a device; there are {', '.join(ON_DEVICE)}")
    if step.version != VERSIONS[step.use]:
        raise ConfigError(
            f"inspector {step.use} has version {VERSIONS[step.use]} here, {step.version} was asked for; update the agent"
        )
    types = {column.name: column.type for column in contract.columns}
    if step.column and types.get(step.column) is not ColumnType.STRING:
        raise ConfigError(f"inspector {step.use}: {contract.name} has no text column {step.column!r}")
    if not step.column and contract.payload is None:
        raise ConfigError(f"inspector {step.use}: {contract.name} has no payload; name a column")
    columns = device_columns(step.use)
    for column in columns:
        if types.get(column.name, column.type) is not column.type:
            raise ConfigError(f"inspector {step.use}: {contract.name} has {column.name} as {types[column.name]}")
    return Inspector(step, columns, _picture_look() if step.use == "image" else _text)


def _filled(had: Sequence[Scalar] | None, found: Sequence[Scalar]) -> Sequence[Scalar]:
    if had is None:
        return found
    return [new if old is None else old for old, new in zip(had, found, strict=True)]


def _picture_look() -> _Look:
    try:
        pictures = shared_pictures("inspect")
    except ConfigError as error:
        raise ConfigError(f"inspector image: {error}: pip install 'catchment[infer]'") from error

    def look(value: _Value) -> Sequence[Scalar]:
        if isinstance(value, str):
            raise UninspectableError("a text is no picture")
        try:
            return pictures.facts(value)
        except (HarmfulPictureError, SourceError) as error:
            raise UninspectableError(str(error)) from error

    return look


def _text(value: _Value) -> Sequence[Scalar]:

    if isinstance(value, Path):
        raise UninspectableError("a text too large for memory is left to the core")
    return text_counts(value if isinstance(value, str) else value.decode("utf-8", "replace"))


@dataclass(frozen=True, slots=True)
class Failed:
    """Samples that an inspector could not look at, and why not the last of them."""

    inspector: str
    samples: int
    reason: str


@dataclass(frozen=True, slots=True)
class InspectedBatch:
    """A batch with every column the inspectors gave, and with those alone that its contract has."""

    for_rules: SampleBatch
    stored: SampleBatch
    failures: tuple[Failed, ...] = ()


@dataclass(frozen=True, slots=True)
class BatchInspector:
    """The inspectors of one stream; `refused` tells of those that cannot run here."""

    inspectors: tuple[Inspector, ...]
    known: frozenset[str]
    refused: tuple[str, ...] = ()

    @classmethod
    def opened(cls, contract: Contract, steps: Sequence[EdgeInspect]) -> Self:
        """Make the steps ready, each once; one that cannot run here is logged, and costs no sample."""
        found: list[Inspector] = []
        refused: list[str] = []
        for step in dict.fromkeys(steps):
            try:
                found.append(open_inspector(step, contract))
            except ConfigError as error:
                refused.append(str(error))
                log.error("inspector_unavailable", stream=contract.name, inspector=step.use, reason=str(error))  # noqa: TRY400
        return cls(tuple(found), frozenset(column.name for column in contract.columns), tuple(refused))

    @property
    def columns(self) -> tuple[Column, ...]:
        """The columns that the inspectors fill."""
        return tuple(column for inspector in self.inspectors for column in inspector.columns)

    def __call__(self, batch: SampleBatch) -> InspectedBatch:
        """Look at a batch."""
        if not self.inspectors:
            return InspectedBatch(batch, batch)
        for_rules, failures = batch, []
        for inspector in self.inspectors:
            seen = inspector(for_rules)
            for_rules = for_rules.with_columns(seen.columns)
            if seen.failures:
                failures.append(Failed(inspector.step.use, seen.failures, seen.reason))
        stored = batch.with_columns({
            column.name: for_rules.columns[column.name] for column in self.columns if column.name in self.known
        })  # fmt: skip
        return InspectedBatch(for_rules, stored, tuple(failures))


def requested_steps(inspect: Sequence[InspectConfig], contract: Contract) -> tuple[EdgeInspect, ...]:
    """The steps of a source, each tried.

    Raises:
        ConfigError: one cannot run here, or its libraries are not installed.
    """
    steps = tuple(EdgeInspect(each.use, VERSIONS[each.use], each.column) for each in inspect)
    for step in steps:
        open_inspector(step, contract)
    return steps
