"""A source of CAN, a bus or a log of one: signals decoded by a DBC (`can_signal`), or without one the frames (`can_frame`).

    kind = "can"
    channel = "can0"               # a bus: SocketCAN
    interface = "socketcan"        # or another of python-can's
    bus = { fd = true }            # python-can's own options of that interface
    log = "drive.blf"              # or a log: .log (candump, either form), .blf, .asc, .trc, .csv; .gz too
    dbc = ["car.dbc"]              # also .arxml, .kcd, .sym
    dbc_by_channel = { can1 = ["body.dbc"] }   # for frames of that channel in place of `dbc`
    j1939 = "auto"                 # extended messages by group number: "yes" all, "no" none
    signals = ["SPEED.*", "*.STEER_ANGLE"]   # message.signal; default: all
    time_start = "2024-05-01T00:00:00Z"      # a log whose times count from 0: its first frame's time
    time_zone = "Europe/Berlin"              # of a log with dates that tell none: candump -t A

Needs the `can` extra (python-can and cantools). A log resumes at the frame where it was left; a bus does not repeat itself.
"""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Literal

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, Source
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.cells import CellError, start_time_us
from schemas.contract import Contract
from schemas.source_names import match_columns
from schemas.written_values import WrittenValueError, read_zone

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("channel", "interface", "log")

NEEDED = ("can_id", "signal", "value")
NEEDED_RAW = ("can_id", "data")


class CanOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a bus or a log of one; the module's docstring shows each."""

    dbc: tuple[str, ...] = ()
    dbc_by_channel: dict[str, tuple[str, ...]] = {}
    j1939: Literal["auto", "yes", "no"] = "auto"
    channel: str = ""
    interface: str = "socketcan"
    bus: dict[str, str | int | float | bool] = {}
    log: str = ""
    signals: tuple[str, ...] = ("*",)
    time_start: str = ""
    time_zone: str = ""
    wait_ms: int = 100


SIGNAL_NAMES = ("channel", "can_id", "source_address", "message", "signal", "value", "unit", "choice")
FRAME_NAMES = ("channel", "can_id", "is_extended", "group_number", "source_address", "is_fd", "is_remote", "data")


def names_given(_: Mapping[str, object], contract: Contract) -> tuple[str, ...]:
    """The names that a signal gives, or a frame where the contract takes frames as they are."""
    return FRAME_NAMES if wants_frames(contract) else SIGNAL_NAMES


def check(options: Mapping[str, object], contract: Contract) -> CanOptions:
    """The options of a CAN source; the DBC is read.

    Raises:
        ConfigError: an option is unknown, missing or wrong, the contract has no signals, or a library is not installed.
    """
    chosen = read_options("can", options, CanOptions, contract)
    is_raw = wants_frames(contract)
    lacking = [name for name in NEEDED if name not in match_columns(NEEDED, contract.columns, {})]
    if lacking and not is_raw:
        raise ConfigError(
            f"source 'can': contract {contract.name} has no column {', '.join(lacking)}; use can_signal or can_frame"
        )
    if bool(chosen.log) == bool(chosen.channel):
        raise ConfigError("source 'can': give either channel, a bus, or log, a file")
    has_databases = bool(chosen.dbc or chosen.dbc_by_channel)
    if is_raw and has_databases:
        raise ConfigError(f"source 'can': stream {contract.name} takes frames as they are; leave dbc out, or use can_signal")
    if not is_raw and not (has_databases and chosen.signals and all(chosen.dbc_by_channel.values())):
        raise ConfigError("source 'can': dbc and signals must not be empty; without a DBC use stream can_frame")
    if chosen.time_start:
        try:
            start_time_us(chosen.time_start)
        except CellError as error:
            raise ConfigError(f"source 'can': time_start = {chosen.time_start!r} is {error}") from error
    try:
        read_zone(chosen.time_zone)
    except WrittenValueError as error:
        raise ConfigError(f"source 'can': {error}") from error
    if find_spec("can") is None or find_spec("cantools") is None:
        raise ConfigError("source 'can' needs python-can and cantools: install catchment[can]")
    from edge_agent.sources.can.decoder import FrameSampler  # noqa: PLC0415 # the library comes with an extra

    FrameSampler(chosen, contract, Rejects("can"))
    return chosen


def wants_frames(contract: Contract) -> bool:
    """Whether a stream takes frames as they are, not signals."""
    matched = match_columns((*NEEDED_RAW, "signal"), contract.columns, {})
    return all(name in matched for name in NEEDED_RAW) and "signal" not in matched


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> Source:
    """Open a bus or a log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: it cannot be opened.
    """
    del clock  # frames carry the times of the kernel, or of the log
    chosen = check(options, contract)
    # Loaded only here: they come with an extra.
    if chosen.log:
        from edge_agent.sources.can.frames import CanLog  # noqa: PLC0415

        return CanLog(chosen, contract, position)
    from edge_agent.sources.can.frames import CanLive  # noqa: PLC0415

    return CanLive(chosen, contract)
