"""A source that follows a log that still grows: CSV, JSON lines, plain lines or Zeek's tabs, across rotation.

    kind = "tail"
    path = "/var/log/press/press.csv"
    format = "auto"                # csv | jsonl | plain | zeek; auto: by how the log begins, plain never
    rotated = ["old/*.csv.gz"]     # relative to the log's folder; default: press.csv.1, press-20240501.csv and the like
    start = "begin"                # begin | end of the log, or rotated: those already rotated first
    rename = { v = "speed_mps" }   # a plain line is called message
    time_column = "t"              # default: event_time, ts, timestamp or time, whichever is there; else the time of reading
    time_zone = "Europe/Berlin"    # and time_unit, time_format, decimal, thousands: see edge_agent.sources.options
    settle_ms = 2000               # so long after a rotation the old file may still grow

Rotation by name and by copy (logrotate's copytruncate) are both followed; see `edge_agent.sources.logs.follow`.
"""

from collections.abc import Mapping
from typing import Literal

from catchment.runtime.clock import Clock
from edge_agent.sources.logs.forms import CSV, JSONL, ZEEK
from edge_agent.sources.logs.rotation import LogOptions, check_rotated
from edge_agent.sources.logs.rows import FollowedKind, LogRows
from edge_agent.sources.options import read_options
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path",)


class TailOptions(LogOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a followed log; the module's docstring shows each."""

    format: Literal["auto", "csv", "jsonl", "plain", "zeek"] = "auto"


def check(options: Mapping[str, object], contract: Contract) -> TailOptions:
    """The options of a followed log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("tail", options, TailOptions, contract)
    check_rotated("tail", chosen.rotated)
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> LogRows:
    """Follow a log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: rotated logs cannot be listed.
    """
    chosen = check(options, contract)
    forms = (ZEEK, JSONL, CSV) if chosen.format == "auto" else (chosen.format,)
    # In CSV an empty cell says nothing; JSON leaves unset fields out.
    kind = FollowedKind("tail", forms, frozenset({""}), is_timed=False)
    return LogRows(kind, chosen, contract, clock, position)
