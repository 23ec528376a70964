"""A source of CAN signals: a bus or a log of one, decoded by a DBC; each signal of each frame is a sample of `can_signal`.

    kind = "can"
    channel = "can0"               # a bus: SocketCAN
    interface = "socketcan"        # or another of python-can's
    bus = { fd = true }            # python-can's own options of that interface
    log = "drive.blf"              # or a log: .log (candump), .blf, .asc, .trc, .csv; .gz too
    dbc = ["car.dbc"]              # also .arxml, .kcd, .sym
    signals = ["SPEED.*", "*.STEER_ANGLE"]   # message.signal; default: all
    time_start = "2024-05-01T00:00:00Z"      # a log whose times count from 0: its first frame's time

Needs the `can` extra (python-can and cantools). A log resumes at the frame where it was left; a bus does not repeat itself.
"""

from collections.abc import Mapping
from importlib.util import find_spec

import msgspec

from edge_agent.capture.batch import Source
from edge_agent.capture.cells import CellError, start_time_us
from edge_agent.capture.options import read_options
from edge_agent.clock import Clock
from edge_agent.errors import ConfigError
from schemas.contract import Contract

NEEDED = ("can_id", "signal", "value")


class CanOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a bus or a log of one; the module's docstring shows each."""

    dbc: tuple[str, ...]
    channel: str = ""
    interface: str = "socketcan"
    bus: dict[str, str | int | float | bool] = {}
    log: str = ""
    signals: tuple[str, ...] = ("*",)
    time_start: str = ""
    wait_ms: int = 100


SIGNAL_NAMES = ("channel", "can_id", "message", "signal", "value", "unit", "choice")


def names_given(_: Mapping[str, object], __: Contract) -> tuple[str, ...]:
    """The names that a signal gives."""
    return SIGNAL_NAMES


def check(options: Mapping[str, object], contract: Contract) -> CanOptions:
    """The options of a CAN source; the DBC is read.

    Raises:
        ConfigError: an option is unknown, missing or wrong, the contract has no signals, or a library is not installed.
    """
    chosen = read_options("can", options, CanOptions)
    lacking = [name for name in NEEDED if contract.column(name) is None]
    if lacking:
        raise ConfigError(f"source 'can': contract {contract.name} has no column {', '.join(lacking)}; use can_signal")
    if bool(chosen.log) == bool(chosen.channel):
        raise ConfigError("source 'can': give either channel, a bus, or log, a file")
    if not chosen.dbc or not chosen.signals:
        raise ConfigError("source 'can': dbc and signals must not be empty")
    if chosen.time_start:
        try:
            start_time_us(chosen.time_start)
        except CellError as error:
            raise ConfigError(f"source 'can': time_start = {chosen.time_start!r} is {error}") from error
    if find_spec("can") is None or find_spec("cantools") is None:
        raise ConfigError("source 'can' needs python-can and cantools: install catchment[can]")
    from edge_agent.capture.can_decoder import SignalDecoder  # noqa: PLC0415 # the library comes with an extra

    SignalDecoder(chosen.dbc, chosen.signals)
    return chosen


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
        from edge_agent.capture.can_log import CanLog  # noqa: PLC0415

        return CanLog(chosen, contract, position)
    from edge_agent.capture.can_live import CanLive  # noqa: PLC0415

    return CanLive(chosen, contract)
