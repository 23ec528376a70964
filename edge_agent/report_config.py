"""`[source.report]`: which samples of a telemetry stream are worth reporting."""

import math

import msgspec

from edge_agent.errors import ConfigError
from schemas.contract import NESTED_TYPES, NUMERIC_TYPES, Contract


class ReportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[source.report]`.

    Attributes:
        deadband: numeric column -> by how much it must change, in its own unit, to be reported.
        change_only: columns that are reported when their value is another.
        key: columns that name what is observed (a signal, a camera): each value is watched by itself.
        max_interval_s: report at least so often, by event time; 0: only changes.
    """

    deadband: dict[str, float] = {}
    change_only: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    max_interval_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.deadband and not self.change_only:
            raise ValueError("report: name columns under deadband or change_only")
        if any(not 0 <= width < math.inf for width in self.deadband.values()):
            raise ValueError("report: a deadband is a number from 0 on")
        if not 0 <= self.max_interval_s < math.inf:
            raise ValueError("report: max_interval_s is a number of seconds from 0 on")

    def check_against(self, contract: Contract) -> None:
        """Whether the contract has these columns.

        Raises:
            ConfigError: it has not, or a deadband is on a column that is no number.
        """
        if contract.payload is not None:
            raise ConfigError(f"source.report is for telemetry: stream {contract.name} has a payload with each sample")
        for name in (*self.deadband, *self.change_only, *self.key):
            column = contract.column(name)
            if column is None:
                known = ", ".join(column.name for column in contract.columns)
                raise ConfigError(f"source.report: {name!r} is no column of contract {contract.name} ({known})")
            if name in self.key and column.type in NESTED_TYPES:
                raise ConfigError(f"source.report: key {name!r}: the column is {column.type}; a key is a plain value")
            if name in self.deadband and column.type not in NUMERIC_TYPES:
                raise ConfigError(f"source.report: deadband {name!r}: the column is {column.type}, not a number")
