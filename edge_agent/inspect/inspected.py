"""All inspectors of one stream over a batch: what the rules are asked about, and what of it is stored."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import structlog

from edge_agent.errors import ConfigError
from edge_agent.inspect.config import InspectConfig
from edge_agent.inspect.steps import Inspector, open_inspector
from edge_agent.sources.api import SampleBatch
from schemas.contract import Column, Contract
from schemas.edge_policy import EdgeInspect
from schemas.inspectors import VERSIONS

log = structlog.get_logger(__name__)


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
        """Make the steps ready, each once; what cannot run here is told, and costs nobody a sample."""
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
        """What the inspectors give."""
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
