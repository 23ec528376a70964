"""Decide when an internal error is systemic: (nearly) every message meets it, again and again.

A fault that few messages meet is got around: those are refused alone (see `isolate`). But a broken library or a missing file
fails on whatever comes, and would put all that comes into quarantine. So consecutive faults are counted over runs, because a
run may hold one message alone; a message that is settled in any other way ends the streak. One device alone cannot block others:
where there are several, consecutive faults must be of two. Decisions are pure; the streak has a file
only while it lasts.
"""

from collections.abc import Collection
from dataclasses import dataclass

import msgspec

from pipelines.errors import CorruptLakeError
from pipelines.ingest.work import Prepared
from pipelines.lake.lake import Lake
from pipelines.lake.layout import faults_path

_ENOUGH_DEVICES = 2


class FaultStreak(msgspec.Struct, frozen=True):
    """Consecutive internal errors: messages refused since the last one that settled soundly.

    Attributes:
        refused: messages that committed runs refused for such a fault.
        devices: whose they are; two names are enough.
        stopped_run: the run that is paused; 0 for none.
        at_us: when it was first paused, microseconds since 1970.
        reason: the fault.
    """

    refused: int = 0
    devices: tuple[str, ...] = ()
    stopped_run: int = 0
    at_us: int = 0
    reason: str = ""


@dataclass(frozen=True, slots=True)
class FaultBreaker:
    """The thresholds: a run is paused where `share` of its messages meet a fault, and `count` consecutive ones have.

    A share of 0 never pauses a run: messages that meet a fault go to quarantine.
    """

    share: float = 0.9
    count: int = 10


@dataclass(frozen=True, slots=True)
class FaultsOfRun:
    """Faults of a prepared run: its messages, how many met a fault with all they had, whose those are, one fault."""

    messages: int
    refused: int
    devices: frozenset[str]
    reason: str


def faults_of(prepared: Prepared) -> FaultsOfRun:
    """Add the items of a run up."""
    faults = [item.faults for item in prepared.items]
    return FaultsOfRun(
        sum(item.messages for item in prepared.items),
        sum(one.refused for one in faults),
        frozenset(device for one in faults for device in one.devices),
        next((one.reason for one in faults if one.reason), ""),
    )


def is_systemic(found: FaultsOfRun, before: FaultStreak, known: Collection[str], limit: FaultBreaker) -> bool:
    """Whether the run must be paused: the fault is no message's doing.

    Args:
        found: the run.
        before: the consecutive faults before it.
        known: every device that was ever heard of.
        limit: the thresholds.
    """
    if not _exceeds(found, limit) or before.refused + found.refused < limit.count:
        return False
    met = found.devices | set(before.devices)
    return len(met) >= min(_ENOUGH_DEVICES, len(met | set(known)))


def streak_after(found: FaultsOfRun, before: FaultStreak, limit: FaultBreaker) -> FaultStreak:
    """The consecutive faults once the run is committed. A run without a message changes nothing."""
    if not found.messages:
        return before
    if not _exceeds(found, limit):
        return FaultStreak()
    devices = tuple(sorted(found.devices | set(before.devices))[:_ENOUGH_DEVICES])
    return FaultStreak(before.refused + found.refused, devices, reason=found.reason)


def paused(run: int, now_us: int, found: FaultsOfRun, before: FaultStreak) -> FaultStreak:
    """The record of a paused run; its first time is kept from try to try."""
    at_us = before.at_us if before.stopped_run == run else now_us
    return msgspec.structs.replace(before, stopped_run=run, at_us=at_us, reason=found.reason)


def _exceeds(found: FaultsOfRun, limit: FaultBreaker) -> bool:
    return bool(limit.share and found.refused and found.refused >= limit.share * found.messages)


def read_faults(lake: Lake) -> FaultStreak:
    """Read the consecutive faults; none where there is no file.

    Raises:
        CorruptLakeError: it is not what was written.
        RetryLaterError: the storage is away.
    """
    path = faults_path(lake.root)
    try:
        return msgspec.json.decode(lake.read(path), type=FaultStreak)
    except FileNotFoundError:
        return FaultStreak()
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not what the run loop writes ({error}); delete it") from error


def keep_faults(lake: Lake, before: FaultStreak, after: FaultStreak) -> None:
    """Keep the consecutive faults, durable, if they have changed.

    Raises:
        RetryLaterError: the storage is away.
        OSError: the disk refused.
    """
    if after == before:
        return
    if after == FaultStreak():
        lake.delete(faults_path(lake.root))
    else:
        lake.put(faults_path(lake.root), msgspec.json.encode(after))
