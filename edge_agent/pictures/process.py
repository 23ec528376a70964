"""The agent's side of the process that decodes pictures: one for inspectors, one for redaction, shared by all sources."""

import threading
from collections.abc import Sequence
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import msgspec
import structlog

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Closed, Outcome, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from edge_agent.errors import ConfigError, SourceError
from edge_agent.pictures.child import InspectRequest, PictureRequest, RedactRequest
from schemas.contract import ImageRedact

Kind = Literal["inspect", "redact"]
_TARGET = "edge_agent.pictures.child:open_decoder"
_NEEDED = {"inspect": ("numpy", "PIL"), "redact": ("PIL",)}
# 64 megapixels of three bytes: as they are decoded, and for redaction as they are written out again.
_MEMORY_BYTES = {"inspect": 384 * MIB, "redact": 640 * MIB}
_PICTURE_TIMEOUT_S = 30.0
_TRIES = 2

log = structlog.get_logger(__name__)


class HarmfulPictureError(Exception):
    """This picture cannot be decoded within the limits, or not at all; the message says why. The next one may be."""


class PictureProcess:
    """Decodes pictures for one purpose. Any thread may call; pictures are decoded one after another.

    Args:
        kind: what for.
        timeout_s: how long one picture may take.
        memory_bytes: most that it may take; None: what the largest picture of this purpose needs.
        needs: modules that it needs; None: those of this purpose.

    Raises:
        ConfigError: what it needs is not installed; the message names it.
    """

    def __init__(
        self,
        kind: Kind,
        timeout_s: float = _PICTURE_TIMEOUT_S,
        memory_bytes: int | None = None,
        needs: Sequence[str] | None = None,
    ) -> None:
        for name in _NEEDED[kind] if needs is None else needs:
            if find_spec(name) is None:
                raise ConfigError(f"{name} is not installed")
        self._kind = kind
        self._timeout_s = timeout_s
        self._lock = threading.Lock()
        limits = WorkerLimits(
            memory_bytes=memory_bytes or _MEMORY_BYTES[kind], cpu_s=round(timeout_s), max_answer_bytes=256 * MIB
        )
        self._worker = WorkerProcess(WorkerSpec(target=_TARGET, options=kind.encode(), limits=limits))

    @property
    def pid(self) -> int | None:
        """Process id; None while it does not run."""
        return self._worker.pid

    def facts(self, payload: bytes | Path) -> tuple[Any, ...]:
        """The values of `schemas.inspectors.PICTURE_COLUMNS`, in order.

        Raises:
            HarmfulPictureError: the picture cannot be inspected.
            SourceError: no process can be started at the moment.
        """
        body, path = _either(payload)
        return tuple(msgspec.msgpack.decode(self._ask(InspectRequest(body, path))))

    def redact(self, redact: ImageRedact, payload: bytes | Path, regions: object) -> bytes:
        """The picture, encoded again, without what must not be seen.

        Raises:
            HarmfulPictureError: the picture cannot be redacted.
            SourceError: no process can be started at the moment: what could not be redacted now may be later.
        """
        body, path = _either(payload)
        return self._ask(RedactRequest(redact, regions if isinstance(regions, str) else None, body, path))

    def close(self) -> None:
        """End the process."""
        self._worker.close()

    def _ask(self, request: PictureRequest) -> bytes:
        """The answer. A picture that ends the process is tried once more: it may have been ended from outside."""
        body = msgspec.msgpack.encode(request)
        with self._lock:
            for is_last in (False,) * (_TRIES - 1) + (True,):
                outcome = self._request(body)
                if isinstance(outcome, Answered):
                    return outcome.body
                if isinstance(outcome, Refused):
                    raise HarmfulPictureError(outcome.reason)
                log.warning("picture_process_ended", kind=self._kind, reason=str(outcome), given_up=is_last)
        raise HarmfulPictureError(f"the picture cannot be decoded: {outcome}")

    def _request(self, body: bytes) -> Outcome:
        try:
            started = self._worker.start()
        except OSError as error:
            raise SourceError(f"no process to decode pictures can be started: {error}; it is tried again") from error
        if not isinstance(started, Answered):
            raise SourceError(f"the process that decodes pictures does not start: {started}; it is tried again")
        return self._worker.request(body, self._timeout_s) or Closed()


@lru_cache(maxsize=2)
def shared_pictures(kind: Kind) -> PictureProcess:
    """The process for all sources of this agent; it is started with the first picture.

    Raises:
        ConfigError: what it needs is not installed; the message names it.
    """
    return PictureProcess(kind)


def _either(payload: bytes | Path) -> tuple[bytes, str]:
    return (payload, "") if isinstance(payload, bytes) else (b"", str(payload.absolute()))
