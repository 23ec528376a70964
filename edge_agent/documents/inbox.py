"""Documents of one kind as they come down: the newest waits until it can be decided about, and what became of it is counted."""

import threading
from typing import Generic, TypeVar

import msgspec
import structlog

from catchment.runtime.backoff import Backoff
from catchment.runtime.clock import Clock
from edge_agent.documents.counter import CounterFile
from edge_agent.documents.gate import AdmittedDocument, DocumentGate
from edge_agent.errors import DocumentLaterError, ExpiredDocumentError, UntrustedDocumentError
from schemas.reported import DocumentReport
from schemas.signed_document import DocumentKind

_FIRST_RETRY_S = 10.0
_LONGEST_RETRY_S = 300.0
_Body = TypeVar("_Body", bound=msgspec.Struct)

log = structlog.get_logger(__name__)


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
        self._pending: bytes | None = None
        self._decided = b""
        self._retry = Backoff(_FIRST_RETRY_S, _LONGEST_RETRY_S)
        self._due_s = float("-inf")
        self._refused = 0
        self._reason = ""

    def hand_in(self, body: bytes) -> None:
        """Take a message in. An empty one takes nothing away: only a signed document does. Returns at once."""
        with self._lock:
            if not body or body in (self._decided, self._pending):
                return
            self._pending = body[: self._max_bytes + 1]
            self._retry.succeeded()
            self._due_s = float("-inf")

    @property
    def is_due(self) -> bool:
        """Whether a message has come that is to be decided about now."""
        with self._lock:
            return self._pending is not None and self._clock.monotonic_s() >= self._due_s

    def take(self) -> _Body | None:
        """Decide about the newest message, as `take_admitted` does; its order alone."""
        admitted = self.take_admitted()
        return None if admitted is None else admitted.body

    def take_admitted(self) -> AdmittedDocument[_Body] | None:
        """Decide about the newest message, if it is time to.

        Returns:
            The document to follow from now on, noted durably before; None: nothing new.
        """
        with self._lock:
            body = self._pending
            if body is None or self._clock.monotonic_s() < self._due_s:
                return None
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
            if self._pending == body:  # or a newer one came meanwhile
                self._pending = None

    def _wait(self, body: bytes, error: Exception) -> None:
        with self._lock:
            is_news = self._reason != str(error)
            self._reason = str(error)
            # An expired document is counted once, and looked at again: the device's clock may be what is wrong.
            self._refused += isinstance(error, ExpiredDocumentError) and self._decided != body
            if isinstance(error, ExpiredDocumentError):
                self._decided = body
            self._due_s = self._clock.monotonic_s() + self._retry.next_s()
        if is_news:
            log.warning("document_waits", kind=self._kind.value, reason=str(error))
