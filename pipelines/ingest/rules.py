"""The rules of the next run: contracts and policies, read anew when their files change.

A file that is broken or does not fit the lake never stops the runs: the rules before it stay in force, the error is
logged once for each change and counted. At the start there are no rules before it, so there it does stop.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TypeAlias

import structlog

from pipelines.contracts.registry import ContractSet
from pipelines.errors import ConfigError, PipelineError
from pipelines.ingest.plan import Pins
from pipelines.ingest.plan_files import write_pins
from pipelines.ingest.publish import stream_shape
from pipelines.inspect.code import store_code
from pipelines.inspect.columns import inspected
from pipelines.lake.commit import APP
from pipelines.lake.lake import Lake
from pipelines.lake.layout import stream_table
from pipelines.lake.table import TableStates, check_evolution
from pipelines.policy.active import newest_number, policies_in_force
from pipelines.policy.engine import Tagger

log = structlog.get_logger(__name__)
Fingerprint: TypeAlias = tuple[tuple[str, int, int, int], ...]


class RuleBook:
    """The rules in force.

    Args:
        lake: the lake, where rules are stored under their digest.
        contracts: a folder, or "".
        policies: a folder, or "".

    Raises:
        ConfigError: a file is broken, or a contract does not fit the lake's tables.
        ExpressionError: a rule does not compile.
    """

    def __init__(self, lake: Lake, contracts: str, policies: str) -> None:
        self.errors = 0
        self.broken = ""
        self.reloads = 0
        self._lake = lake
        self._contracts = contracts
        self._policies = policies
        self._changes = 0
        self._seen = self._fingerprint()
        self._digest = self._load()

    @property
    def digest(self) -> str:
        """The name of the rules in force."""
        return self._digest

    def refresh(self) -> str:
        """The rules for the next run: read anew if a file has changed since the last look."""
        seen = self._fingerprint()
        if seen == self._seen:
            return self._digest
        self._seen = seen
        try:
            before, self._digest = self._digest, self._load()
        except (PipelineError, OSError) as error:
            self.errors += 1
            self.broken = str(error)
            log.error("rules_refused", reason=str(error), still_in_force=self._digest[:12], errors=self.errors)  # noqa: TRY400  # the reason says it all
            return self._digest
        self.broken = ""
        self.reloads += 1
        log.info("rules_reloaded", before=before[:12], now=self._digest[:12])
        return self._digest

    def _load(self) -> str:
        policies = policies_in_force(self._lake, self._policies)
        store_code(self._lake, policies, Path(self._policies))
        contracts = tuple(inspected(contract, policies) for contract in ContractSet.load(self._contracts).all())
        pins = Pins(contracts, policies)
        for contract in contracts:
            Tagger.compile(policies, contract)  # a rule that does not compile must stop here, not the first run
        _check_all_fit(self._lake, sorted({contract.name for contract in contracts}), pins)
        return write_pins(self._lake, pins)

    def _fingerprint(self) -> Fingerprint:
        """Names, sizes, times and inodes of all files: a few stats, no reading."""
        self._changes = newest_number(self._lake, self._changes)
        found: list[tuple[str, int, int, int]] = [("applied", self._changes, 0, 0)]
        for folder in filter(None, (self._contracts, self._policies)):
            try:
                for path in sorted(Path(folder).rglob("*")):
                    stat = path.stat()
                    found.append((str(path), stat.st_mtime_ns, stat.st_size, stat.st_ino))
            except OSError as error:
                found.append((f"{folder}: {error}", 0, 0, 0))  # a file that went meanwhile is a change too
        return tuple(found)


def _check_all_fit(lake: Lake, streams: Sequence[str], pins: Pins) -> None:
    """Refuse, with the difference, a contract whose columns the stream's table has with other types."""
    states = TableStates(lake, APP)
    states.look_up([stream_table(stream) for stream in streams])
    for stream in streams:
        schema, _private = stream_shape(stream, pins)
        state = states.get(stream_table(stream))
        differing = [] if state is None else check_evolution(state.fields(), schema)
        if differing:
            shown = "; ".join(differing)
            raise ConfigError(f"contract {stream} does not fit its table: {shown}; give changed columns new names")
    states.keep()
