"""A source's options, read from the configuration into its frozen struct."""

import math
from collections.abc import Mapping
from typing import TypeVar

import msgspec

from edge_agent.errors import ConfigError
from edge_agent.sources.rows.written import WrittenOptions, check_written
from schemas.contract import Contract

_MEASURES = ("_ms", "_s", "_hz", "_bytes")
OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def read_options(kind: str, options: Mapping[str, object], form: type[OptionsT], contract: Contract) -> OptionsT:
    """Make the options of a source of this kind, and check what all kinds share: `rename`, `columns`, numbers and times.

    Raises:
        ConfigError: an unknown key, a missing one, a wrong type, no such column, or forms that contradict each other; the
            message names the key.
    """
    try:
        chosen = msgspec.convert(dict(options), type=form)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(form))
        raise ConfigError(f"source {kind!r}: {error}; its keys are {known}") from error
    _check_numbers(kind, chosen)
    check_rename(kind, getattr(chosen, "rename", {}), contract)
    check_rename(kind, {name: name for name in getattr(chosen, "columns", ())}, contract)
    if isinstance(chosen, WrittenOptions):
        check_written(kind, chosen)
    return chosen


def _check_numbers(kind: str, chosen: msgspec.Struct) -> None:
    """A length of time, a rate or a size below nothing is a slip, and would read as "nothing to read"."""
    for field in msgspec.structs.fields(chosen):
        value, name = getattr(chosen, field.name), field.encode_name
        least = 1 if name.endswith("_bytes") else 0
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not name.endswith(_MEASURES):
            continue
        if not math.isfinite(value) or value < least:
            raise ConfigError(f"source {kind!r}: {name} = {value} must be {least} or more")


def check_rename(kind: str, rename: Mapping[str, str], contract: Contract) -> None:
    """A rename must end at a column of the contract.

    Raises:
        ConfigError: it names a column that the contract does not have.
    """
    for old, new in rename.items():
        if contract.column(new) is None and new != "event_time":
            known = ", ".join(column.name for column in contract.columns)
            raise ConfigError(f"source {kind!r}: rename.{old} = {new!r} is no column of contract {contract.name} ({known})")
