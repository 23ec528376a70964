"""A source's options, read from the configuration into its frozen struct."""

from collections.abc import Mapping
from typing import TypeVar

import msgspec

from edge_agent.errors import ConfigError
from schemas.contract import Contract

OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)


def read_options(kind: str, options: Mapping[str, object], form: type[OptionsT]) -> OptionsT:
    """Make the options of a source of this kind.

    Raises:
        ConfigError: an unknown key, a missing one or a wrong type; the message names it.
    """
    try:
        return msgspec.convert(dict(options), type=form)
    except msgspec.ValidationError as error:
        known = ", ".join(field.encode_name for field in msgspec.structs.fields(form))
        raise ConfigError(f"source {kind!r}: {error}; its keys are {known}") from error


def check_rename(kind: str, rename: Mapping[str, str], contract: Contract) -> None:
    """A rename must end at a column of the contract.

    Raises:
        ConfigError: it names a column that the contract does not have.
    """
    for old, new in rename.items():
        if contract.column(new) is None and new != "event_time":
            known = ", ".join(column.name for column in contract.columns)
            raise ConfigError(f"source {kind!r}: rename.{old} = {new!r} is no column of contract {contract.name} ({known})")
