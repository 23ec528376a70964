"""Whether this device may act on a document: signed by a key it trusts, meant for it, newer than the last, and in time."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, TypeVar

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.documents.counter import CounterFile, Seen
from edge_agent.documents.signature import check_signatures
from edge_agent.documents.trust import DocumentTrust
from edge_agent.errors import DocumentLaterError, ExpiredDocumentError, UntrustedDocumentError
from schemas.errors import DocumentError
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

_Body = TypeVar("_Body", bound=msgspec.Struct)


@dataclass(frozen=True, slots=True)
class AdmittedDocument(Generic[_Body]):
    """A document that may be applied. `is_known`: the same order was taken before."""

    document: Document
    body: _Body
    is_known: bool

    @property
    def seen(self) -> Seen:
        """The note to keep of the document before it is applied."""
        return Seen(self.document.counter, body_digest(self.document))


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
