"""Signed documents of one kind on their way in: the newest waits, is judged, and is noted before it is followed.

`DocumentGate` decides: signed by a trusted key, meant for this device, newer than the last, and in time. `CounterFile` keeps the
newest document ever taken, twice, so that no older one is taken after rot or a kill. `DocumentInbox` holds the newest message
until it can be decided about, and counts the outcomes.
"""

import hashlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import takewhile
from pathlib import Path
from typing import Generic, TypeVar

import msgspec
import structlog

from catchment.runtime.atomic_files import make_folder, write_atomic
from catchment.runtime.clock import Backoff, Clock
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.documents.signature import check_signatures
from edge_agent.documents.trust import DocumentTrust
from edge_agent.errors import DocumentLaterError, ExpiredDocumentError, UntrustedDocumentError
from schemas.errors import DocumentError
from schemas.reported import DocumentReport
from schemas.signed_document import (
    Document,
    DocumentKind,
    SignedMessage,
    body_digest,
    decode_body,
    decode_document,
    decode_message,
    signing_bytes,
)

log = structlog.get_logger(__name__)

FOLDER = "documents"
_MAX_BYTES = 2_000
_FIELDS = 4


@dataclass(frozen=True, slots=True)
class NewestDocument:
    """The newest document taken.

    Attributes:
        counter: its counter; 0: none was taken.
        digest: of its body; empty: unknown.
    """

    counter: int = 0
    digest: str = ""

    def is_same(self, counter: int, digest: str) -> bool:
        """Whether a document is the one that was taken, perhaps signed again with another time or key."""
        return counter == self.counter and self.digest in {"", digest}


class CounterFile:
    """The newest document taken, in two files. Used by one thread.

    The counter goes on as long as one of the keys under which it was noted is still trusted. A device that trusts none
    of them any more begins again: that is how an operator recovers from a lost counter in the core.

    Args:
        state_dir: the agent's folder; the files go to `documents/` below it.
        kind: of the documents.
        keys: the public keys trusted now.
    """

    def __init__(self, state_dir: Path, kind: str, keys: Sequence[str]) -> None:
        folder = state_dir / FOLDER
        self._files = (folder / f"{kind}.counter", folder / f"{kind}.counter.copy")
        self._keys = tuple(sorted(keys))
        found = [note for path in self._files if (note := _read(path)) is not None]
        known = [seen for seen, keys_then in found if set(keys_then) & set(self._keys)]
        self.seen = self._kept = max(known, key=lambda seen: seen.counter, default=NewestDocument())
        if self.seen.counter and (len(found) < len(self._files) or any(note != (self.seen, self._keys) for note in found)):
            # The keys changed, or one of the two is behind. Without this the counter could be lost at the next change.
            self._refresh()

    def note(self, seen: NewestDocument) -> None:
        """Keep what is about to be applied, durably, before it is. A lower counter changes nothing.

        Raises:
            OSError: the disk refused; nothing may be applied.
        """
        if seen.counter >= self.seen.counter and seen != self._kept:
            self._write(seen)

    def raise_to(self, seen: NewestDocument) -> None:
        """Take into account what another file tells of the newest document."""
        if seen.counter > self.seen.counter:
            self.seen = seen

    def _write(self, seen: NewestDocument) -> None:
        make_folder(self._files[0].parent)
        for path in self._files:
            write_atomic(path, _encode(seen, self._keys))
        self.seen = self._kept = seen

    def _refresh(self) -> None:
        try:
            self._write(self.seen)
        except OSError as error:
            log.warning("document_counter_not_refreshed", file=str(self._files[0]), error=str(error))


def _read(path: Path) -> tuple[NewestDocument, tuple[str, ...]] | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.error("document_counter_unreadable", file=str(path), error=str(error))  # noqa: TRY400  # the reason says it all
        return None
    fields = text.decode(errors="replace").split()
    if len(fields) == _FIELDS and fields[0].isdecimal():
        seen, keys = NewestDocument(int(fields[0]), fields[1].removeprefix("-")), tuple(fields[2].split(","))
        if text == _encode(seen, keys):
            return seen, keys
    log.error("document_counter_damaged", file=str(path))
    return None


def _encode(seen: NewestDocument, keys: Sequence[str]) -> bytes:
    # The sum tells a rotten digit from a written one: a counter that rot made high would refuse every document to come.
    line = f"{seen.counter} {seen.digest or '-'} {','.join(keys)}"
    return f"{line} {hashlib.sha256(line.encode()).hexdigest()}\n".encode()


_Body = TypeVar("_Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class AdmittedDocument(Generic[_Body]):
    """A document that may be applied. `is_known`: the same order was taken before."""

    document: Document
    body: _Body
    is_known: bool

    @property
    def seen(self) -> NewestDocument:
        """The note to keep of the document before it is applied."""
        return NewestDocument(self.document.counter, body_digest(self.document))


class DocumentGate(Generic[_Body]):
    """Admits the documents of one kind. Used by one thread.

    Args:
        kind: the kind that belongs to the topic the documents come from.
        body_type: the form of their body.
        trust: whom the device believes, and who it is.
        counter: the newest that was taken.
        clock: wall clock, for not-before and expiry.
        max_bytes: the largest message.
        check: checks signatures.
    """

    def __init__(
        self,
        kind: DocumentKind,
        body_type: type[_Body],
        trust: DocumentTrust,
        counter: CounterFile,
        clock: Clock,
        max_bytes: int,
        check: Callable[[bytes, list[tuple[str, str]]], None] = check_signatures,
    ) -> None:
        self._kind = kind
        self._body_type = body_type
        self._trust = trust
        self._counter = counter
        self._clock = clock
        self._max_bytes = max_bytes
        self._check = check
        self._checked = ""

    def admit(self, message: bytes) -> AdmittedDocument[_Body]:
        """Decide whether the document in a message may be applied now.

        Raises:
            UntrustedDocumentError: forged, malformed, of another kind, a replay, or for others.
            DocumentLaterError: its time has not come, or its signature could not be checked now.
            ExpiredDocumentError: too old, by this device's clock.
        """
        signed, document, body = self._read(message)
        # What costs nothing to refuse is refused before the signature is looked at; nothing is believed before it was.
        seen, digest = self._counter.seen, body_digest(document)
        is_known = seen.is_same(document.counter, digest)
        if document.counter <= seen.counter and not is_known:
            raise UntrustedDocumentError(f"counter {document.counter} is not newer than {seen.counter}, which was taken before")
        if not document.to.covers(self._trust.device, self._trust.cohorts):
            raise UntrustedDocumentError(f"counter {document.counter} is for other devices")
        self._verify(signed)
        if not is_known:
            judge_time(document, self._clock.now_ms())
        return AdmittedDocument(document, body, is_known)

    def read_kept(self, message: bytes) -> AdmittedDocument[_Body]:
        """Read a document that this device took before and kept: whatever its counter and its time, it stays in force.

        Raises:
            UntrustedDocumentError: no longer what was signed, or for others.
            DocumentLaterError: its signature could not be checked now.
        """
        signed, document, body = self._read(message)
        if not document.to.covers(self._trust.device, self._trust.cohorts):
            raise UntrustedDocumentError(f"counter {document.counter} is for other devices")
        self._verify(signed)
        return AdmittedDocument(document, body, is_known=True)

    def _read(self, message: bytes) -> tuple[SignedMessage, Document, _Body]:
        try:
            signed = decode_message(message, self._max_bytes)
            document = decode_document(signed.document, self._kind, self._body_type)
            return signed, document, decode_body(document, self._body_type)
        except DocumentError as error:
            raise UntrustedDocumentError(str(error)) from error

    def _verify(self, signed: SignedMessage) -> None:
        if signed.document == self._checked:
            return  # it waited for its time, and was checked when it came
        if not self._trust.keys:  # the key file is gone or broken: that says nothing of the document
            raise DocumentLaterError("no key could be read that this device trusts; correct [director] file and start again")
        trusted = [(each.key, each.signature) for each in signed.signatures if each.key in self._trust.keys]
        if not trusted:
            raise UntrustedDocumentError("it is signed by no key that this device trusts")
        self._check(signing_bytes(self._kind, signed.document), trusted)
        self._checked = signed.document


def judge_time(document: Document, now_ms: int) -> None:
    """Decide whether a document may be taken at this time.

    A clock that was never set says nothing of the time. Expiry cannot be judged by it, and is not: the counter still keeps
    out what is older than the newest document that was taken. Not-before waits until the clock is set.

    Args:
        document: whose times are judged.
        now_ms: what the device's clock shows, milliseconds since 1970.

    Raises:
        DocumentLaterError: its time has not come, or cannot be known to have.
        ExpiredDocumentError: it is over.
    """
    if now_ms < EARLIEST_MS:
        if document.not_before_ms:
            raise DocumentLaterError(f"counter {document.counter} is to be applied from a time on, and the clock was never set")
        return
    if document.expires_ms is not None and now_ms >= document.expires_ms:
        raise ExpiredDocumentError(
            f"counter {document.counter} expired at {_date(document.expires_ms)} by this device's clock; is it right?"
        )
    if document.not_before_ms > now_ms:
        raise DocumentLaterError(f"counter {document.counter} is to be applied from {_date(document.not_before_ms)} on")


def _date(time_ms: int) -> str:
    try:
        return datetime.fromtimestamp(time_ms / 1000, tz=UTC).isoformat(timespec="seconds")
    except (ValueError, OverflowError, OSError):
        return f"{time_ms} ms"


_FIRST_RETRY_S = 10.0
# Each costs a check of a signature; a director, two servers and a command line send no more within a second.
_MOST_PENDING = 8
_LONGEST_RETRY_S = 300.0


class DocumentInbox(Generic[_Body]):
    """Takes documents in on the uplink's thread, decides about them on another.

    Args:
        kind: of the documents.
        gate: decides.
        counter: where the newest is noted.
        clock: monotonic time, for trying again.
        max_bytes: the largest message.
    """

    def __init__(self, kind: DocumentKind, gate: DocumentGate[_Body], counter: CounterFile, clock: Clock, max_bytes: int) -> None:
        self._kind = kind
        self._gate = gate
        self._counter = counter
        self._clock = clock
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        # Oldest first, each with whether it was counted as refused while it waits.
        self._pending: dict[bytes, bool] = {}
        self._decided = b""
        self._retry = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        self._due_s = float("-inf")
        self._refused = 0
        self._reason = ""

    def hand_in(self, body: bytes) -> None:
        """Take a message in. An empty one takes nothing away: only a signed document does. Returns at once."""
        with self._lock:
            if not body or body == self._decided or body in self._pending:
                return
            self._pending[body[: self._max_bytes + 1]] = False
            if len(self._pending) > _MOST_PENDING:
                del self._pending[next(iter(self._pending))]
            self._retry.succeeded()
            self._due_s = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether a message has come that is to be decided about now."""
        with self._lock:
            return bool(self._pending) and self._clock.monotonic_s() >= self._due_s

    def take(self) -> _Body | None:
        """Decide about what has come, as `take_admitted` does; its order alone."""
        admitted = self.take_admitted()
        return None if admitted is None else admitted.body

    def take_admitted(self) -> AdmittedDocument[_Body] | None:
        """Decide about the messages that have come, in their order, if it is time to.

        The last to come need not be the newest: a slow server's older order may arrive after a halt.

        Returns:
            The document to follow from now on, noted durably before; None: nothing new.
        """
        with self._lock:
            bodies = [*self._pending] if self._clock.monotonic_s() >= self._due_s else []
        newest = None
        for body in bodies:
            admitted = self._admitted(body)
            newest = newest if admitted is None else admitted
        return newest

    def _admitted(self, body: bytes) -> AdmittedDocument[_Body] | None:
        try:
            admitted = self._gate.admit(body)
            self._counter.note(admitted.seen)
        except UntrustedDocumentError as error:
            self._end(body, str(error))
            log.error("document_refused", kind=self._kind.value, reason=str(error))  # noqa: TRY400  # the reason says it all
            return None
        except (DocumentLaterError, OSError) as error:
            self._wait(body, error)
            return None
        self._end(body, "")
        if not admitted.is_known:
            log.info("document_taken", kind=self._kind.value, counter=admitted.document.counter)
        return admitted

    def report(self) -> DocumentReport:
        """Report the documents taken and refused."""
        with self._lock:
            return DocumentReport(self._kind.value, self._counter.seen.counter, self._refused, self._reason)

    def _end(self, body: bytes, reason: str) -> None:
        with self._lock:
            self._decided = body
            self._reason = reason
            self._refused += bool(reason)
            if not reason and body in self._pending:  # those that came before it and wait are of no use any more
                for earlier in [*takewhile(lambda each: each != body, self._pending)]:
                    del self._pending[earlier]
            self._pending.pop(body, None)

    def _wait(self, body: bytes, error: Exception) -> None:
        with self._lock:
            is_news = self._reason != str(error)
            self._reason = str(error)
            # An expired document is counted once, and looked at again: the device's clock may be what is wrong.
            if isinstance(error, ExpiredDocumentError) and self._pending.get(body) is False:
                self._refused += 1
                self._pending[body] = True
            self._due_s = self._clock.monotonic_s() + self._retry.next_s()
        if is_news:
            log.warning("document_waits", kind=self._kind.value, reason=str(error))
