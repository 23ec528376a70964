"""Read a source's options from the configuration into its frozen struct, and parse numbers and times as they say.

Options that name files may be relative: they start at the folder of the configuration file. A source with a time column has:

    time_unit = "ms"                  # s | ms | us | ns | rfc3339; auto: text, or numbers by their size
    time_format = "%d.%m.%Y %H:%M:%S" # as strptime has it; without it RFC 3339
    time_zone = "Europe/Berlin"       # of times that tell none: without it they are refused
    decimal = ","                     # of numbers in text
    thousands = "."                   # between groups of digits: , . ' or a blank; "": nothing
"""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Literal, TypeVar

import msgspec

from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects
from edge_agent.sources.rows.cells import CellError, to_time
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME
from schemas.source_names import TIME_NAMES, column_name_of
from schemas.written_values import NumberForm, TimeForm, WrittenValueError, quick_micros, read_zone

ZONE_GUESSED = "cell event_time: a time that tells no zone, taken as UTC; set time_zone"

_MEASURES = ("_ms", "_s", "_hz", "_bytes")
OptionsT = TypeVar("OptionsT", bound=msgspec.Struct)

# kind -> the options that name files or folders. Those of a plug-in are its own.
_PATHS: dict[str, tuple[str, ...]] = {
    "can": ("log", "dbc", "dbc_by_channel"),
    "directory": ("path", "sidecars", "masks", "attributes"),
    "mqtt-local": ("password_file", "ca"),
    "replay": ("path",),
    "syslog": ("cert", "key", "client_ca"),
    "tail": ("path",),
    "zeek": ("path",),
}


class WrittenOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The form of numbers and times; the module's docstring shows each."""

    time_unit: Literal["auto", "s", "ms", "us", "ns", "rfc3339"] = "auto"
    time_format: str = ""
    time_zone: str = ""
    decimal: str = "."
    thousands: str = ""

    @property
    def numbers(self) -> NumberForm:
        """The form of numbers."""
        return NumberForm(self.decimal, self.thousands)

    @property
    def times(self) -> TimeForm:
        """The form of times."""
        return TimeForm(self.time_unit, self.time_format, read_zone(self.time_zone), self.numbers)


class RowOptions(WrittenOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """Options that map a row's names to columns, and name the event time."""

    rename: dict[str, str] = {}
    time_column: str = ""


def check_written(kind: str, chosen: WrittenOptions) -> None:
    """Whether the options name forms that can be read.

    Raises:
        ConfigError: a zone is unknown, or two options contradict each other.
    """
    try:
        form = chosen.times
    except WrittenValueError as error:
        raise ConfigError(f"source {kind!r}: {error}") from error
    if form.format and not form.tells_zone:
        raise ConfigError(f"source {kind!r}: time_format has no %z, so time_zone must name the zone: Europe/Berlin, or UTC")


def time_column_of(names: Collection[str], rename: Mapping[str, str], chosen: str = "") -> str:
    """Return the one of these names that holds the event time; "" where none does.

    Args:
        names: as the source has them.
        rename: from the configuration; a name renamed to event_time is the one.
        chosen: from the configuration: it decides.
    """
    if chosen:
        return chosen
    renamed = [name for name in names if rename.get(name) == EVENT_TIME]
    exact = [name for name in TIME_NAMES if name in names]
    alike = [name for wanted in TIME_NAMES for name in names if column_name_of(name) == wanted]
    return next(iter((*renamed, *exact, *alike)), "")


class EventTimes:
    """Reads a source's event times.

    Args:
        form: how they are written.
        rejects: where what cannot be read is counted.
        after_us: the last time read before, where the rows follow one another: tells apart local times that occur twice.
        is_in_order: whether rows follow one another; else the time of arrival tells such times apart.

    Attributes:
        after_us: the last time read.
        needs: settings that would change what could not be read, and how often; the caller may hold such rows back.
        example: the first cell that such a setting would change; empty where there is none.
    """

    def __init__(self, form: TimeForm, rejects: Rejects, after_us: int | None = None, *, is_in_order: bool = True) -> None:
        self._form = form
        self._rejects = rejects
        self._is_in_order = is_in_order
        self.after_us = after_us
        self.needs: dict[str, int] = {}
        self.example = ""

    def read(self, cells: Sequence[object], now_us: int | None = None) -> list[int | None]:
        """The times of n cells, microseconds since 1970 UTC; None, counted, where a cell tells no time."""
        self.needs, self.example = {}, ""
        out: list[int | None] = []
        is_quick = self._form.is_quick
        for cell in cells:
            if is_quick and (micros := quick_micros(cell)) is not None:
                self.after_us = micros
                out.append(micros)
                continue
            try:
                found = to_time(cell, self._form, self.after_us if self._is_in_order else None, now_us)
            except CellError as error:
                self._rejects.count(f"row: event time is {error}{_remedy(error.needs)}", cell)
                if error.needs:
                    self.example = self.example or str(cell)
                    self.needs[error.needs] = self.needs.get(error.needs, 0) + 1
                out.append(None)
                continue
            if found.doubt:
                self._rejects.count(f"cell event_time: {found.doubt}", cell)
            self.after_us = found.micros
            out.append(found.micros)
        return out


def _remedy(needs: str) -> str:
    return f"; set {needs}" if needs else ""


def unreadable(kind: str, needs: Mapping[str, int], example: str = "") -> str:
    """Describe times that a setting would make readable, and what to do."""
    what = {
        "time_zone": "its times tell no zone: set time_zone, Europe/Berlin or UTC",
        "time_format": "its times are not RFC 3339: set time_format, such as '%d.%m.%Y %H:%M:%S'",
        "time_unit": "its times are out of range: set time_unit to s, ms, us or ns",
        "decimal": "its times have another decimal sign: set decimal",
    }
    found = "; ".join(what[need] for need in needs if need in what)
    return f"source {kind!r}: {found}{f' ({example[:80]!r})' if example else ''}"


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


def resolve_paths(kind: str, options: Mapping[str, object], folder: Path) -> dict[str, object]:
    """The options with absolute paths."""
    resolved = dict(options)

    def place(value: str) -> str:
        return str(folder / value) if value and not value.startswith("/") else value

    for name in _PATHS.get(kind, ()):
        if name in resolved:
            resolved[name] = _each(resolved[name], place)
    source, command = resolved.get("source"), resolved.get("command")
    if kind == "camera" and isinstance(source, str) and "://" not in source and "format" not in resolved:
        resolved["source"] = place(source)
    if kind == "exec" and isinstance(command, list) and command and isinstance(command[0], str) and "/" in command[0]:
        # A bare name is looked for on PATH, as ever.
        resolved["command"] = [place(command[0]), *command[1:]]
    return resolved


def is_same_path(stored: str, now: str) -> bool:
    """Whether a path kept in a position, by an agent that took relative paths as they were, means the one in use now."""
    if stored == now:
        return True
    return (
        not stored.startswith("/")
        and PurePosixPath(now).parts[-len(PurePosixPath(stored).parts) :] == PurePosixPath(stored).parts
    )


def _each(value: object, place: Callable[[str], str]) -> object:
    if isinstance(value, str):
        return place(value)
    if isinstance(value, list):
        return [_each(one, place) for one in value]
    if isinstance(value, dict):
        return {key: _each(one, place) for key, one in value.items()}
    return value
