"""Claims that one holder has at a time: of a file on this machine, and of a name in a remote lake.

A claim on a remote lake is one object that its holder replaces again and again. Nobody compares clocks: a process that finds
a claim watches it for as long as a holder may be silent, and takes it over only if it has not changed meanwhile. A holder
that was merely slow finds at its next heartbeat that it lost, and stops; until then the conditional puts of plan and commit
keep rows single.
"""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from typing import Self

import msgspec
import structlog

from pipelines.errors import ConflictError, RefusedError, RetryLaterError
from pipelines.lake.store import Store

log = structlog.get_logger(__name__)

LOOP_NAME = "runs/loop.claim"
MAINTENANCE_NAME = "runs/upkeep.claim"
BEATS_PER_TERM = 4


@contextmanager
def held_alone(path: Path, *, is_made: bool = True) -> Iterator[bool]:
    """Try to hold a file; whether it is held.

    Args:
        path: the file; it stays.
        is_made: make it if need be; if not, nobody holds a file that is not there.

    Raises:
        OSError: the disk refused.
    """
    if not is_made and not path.exists():
        yield True
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True
    finally:
        os.close(descriptor)


class LeaseRecord(msgspec.Struct, frozen=True):
    """Who holds the lake, and how often it has said so. `owner` is empty once it was given back."""

    owner: str
    beat: int


class Lease:
    """Holds the claim while it is entered.

    Args:
        store: files of the lake.
        owner: machine and working copy; a process that comes back under the same name takes its claim back at once.
        term_s: how long a holder may be silent.
        stop: ends the waiting for a silent holder.
        name: the claim's object.
        what: who claims, in a word.
    """

    def __init__(self, store: Store, owner: str, term_s: float, stop: Event, name: str, what: str) -> None:
        self._store = store
        self._name = name
        self._what = what
        self._owner = owner
        self._term_s = term_s
        self._stop = stop
        self._tag = ""
        self._beat = 0
        self._is_over = Event()
        self._lost = ""
        self._thread = Thread(target=self._beat_on, name="lake-claim", daemon=True)

    def __enter__(self) -> Self:
        self._take()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._is_over.set()
        self._thread.join()
        if not self._lost:
            try:
                self._say(LeaseRecord("", self._beat + 1))
            except RetryLaterError as error:
                log.warning("claim_not_given_back", reason=str(error), hint="the next one waits for one term")

    def check(self) -> None:
        """Whether the claim is still held.

        Raises:
            RefusedError: another loop has taken it over.
        """
        if self._lost:
            raise RefusedError(self._lost)

    def _take(self) -> None:
        mine = LeaseRecord(self._owner, 1)
        try:
            self._store.create(self._name, msgspec.json.encode(mine))
        except ConflictError:
            self._tag, holder = self._seen()
            if holder.owner not in ("", self._owner):
                log.info("claim_watched", holder=holder.owner, seconds=self._term_s)
                self._stop.wait(self._term_s)
                tag, now = self._seen()
                if tag != self._tag:
                    raise self._refused(now.owner) from None
            self._beat = holder.beat
            try:
                self._say(LeaseRecord(self._owner, self._beat + 1))
            except ConflictError as error:
                raise self._refused(self._seen()[1].owner) from error
        else:
            self._tag, self._beat = self._seen()[0], 1

    def _seen(self) -> tuple[str, LeaseRecord]:
        found = self._store.read_tagged(self._name)
        if found is None:
            raise RetryLaterError(f"{self._store.table_uri(self._name)}: it is gone again; start once more")
        return found[1], msgspec.json.decode(found[0], type=LeaseRecord)

    def _say(self, claim: LeaseRecord) -> None:
        self._tag = self._store.replace(self._name, msgspec.json.encode(claim), self._tag)
        self._beat = claim.beat

    def _beat_on(self) -> None:
        while not self._is_over.wait(self._term_s / BEATS_PER_TERM):
            try:
                self._say(LeaseRecord(self._owner, self._beat + 1))
            except ConflictError:
                where = self._store.table_uri("").rstrip("/")
                self._lost = f"{where}: another {self._what} has taken this lake over; leave the work to it"
                log.exception("claim_lost")
                return
            except RetryLaterError as error:
                log.warning("claim_beat_missed", reason=str(error))

    def _refused(self, holder: str) -> RefusedError:
        return RefusedError(
            f"{self._store.table_uri('').rstrip('/')}: another {self._what} is at work on this lake ({holder or 'unnamed'}); "
            "leave the work to it, or stop it"
        )
