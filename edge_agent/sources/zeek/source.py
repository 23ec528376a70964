"""A source that follows a Zeek log, tab separated or JSON, across rotation.

    kind = "zeek"
    path = "/opt/zeek/logs/current/conn.log"
    rotated = ["../*/conn.*.log.gz"]   # where it goes; relative to its folder; default: conn.<date>.log and the like next to it
    start = "begin"                    # begin | end of the log, or rotated: those already rotated first
    rename = { "local_orig" = "attributes" }
    settle_ms = 2000                   # so long after a rotation the old file may still grow

A file is known by what it contains, not by name or inode, so a position holds after the file was renamed, copied, cut or packed.
Rotated files that were not read, because the agent was down or two rotations came at once, are read in their order.
"""

from collections.abc import Mapping

from catchment.runtime.clock import Clock
from edge_agent.sources.logs.forms import JSONL, ZEEK
from edge_agent.sources.logs.rotation import LogOptions, check_rotated
from edge_agent.sources.logs.rows import FollowedKind, LogRows
from edge_agent.sources.options import read_options
from schemas.contract import Contract

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("path",)


class ZeekOptions(LogOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a followed Zeek log; the module's docstring shows each."""

    time_column: str = "ts"


def check(options: Mapping[str, object], contract: Contract) -> ZeekOptions:
    """The options of a followed Zeek log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("zeek", options, ZeekOptions, contract)
    check_rotated("zeek", chosen.rotated)
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> LogRows:
    """Follow a log.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: rotated logs cannot be listed.
    """
    # An unset mark is understood by the reader; JSON leaves unset fields out.
    kind = FollowedKind("zeek", (ZEEK, JSONL), frozenset(), is_timed=True)
    return LogRows(kind, check(options, contract), contract, clock, position)
