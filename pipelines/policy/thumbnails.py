"""Small pictures of samples, decoded in a limited process: a picture that harms its decoder is only missing on the page."""

from typing import Self

import structlog

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered, Refused
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from pipelines.policy.thumbnail_child import AS_TILE, SIDE_PX

_TARGET = "pipelines.policy.thumbnail_child:open_thumbnailer"
_PICTURE_TIMEOUT_S = 20.0
_MAX_ENDED = 5
_LIMITS = WorkerLimits(memory_bytes=1024 * MIB, cpu_s=20, max_request_bytes=256 * MIB, max_answer_bytes=4 * MIB)

log = structlog.get_logger(__name__)


class Thumbnails:
    """Makes thumbnails of one form in a process that is started when needed, and again when a picture ended it.

    Args:
        form: `AS_JPEG` or `AS_TILE`.
        timeout_s: how long one picture may take.
    """

    def __init__(self, form: bytes, timeout_s: float = _PICTURE_TIMEOUT_S) -> None:
        self._form = form
        self._timeout_s = timeout_s
        self._ended = 0
        self._worker = WorkerProcess(WorkerSpec(target=_TARGET, options=form, limits=_LIMITS))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._worker.close()

    def make(self, body: bytes) -> bytes | None:
        """The small picture; None for what is no picture, or one that cannot be decoded within the limits."""
        if self._ended >= _MAX_ENDED:
            return None
        outcome = self._worker.start()
        if isinstance(outcome, Answered):
            outcome = self._worker.request(body, self._timeout_s) or outcome
        if isinstance(outcome, Answered):
            return outcome.body if self._is_sound(outcome.body) else None
        if not isinstance(outcome, Refused):
            self._ended += 1
            log.warning("picture_not_shown", reason=str(outcome), ended=self._ended, given_up=self._ended >= _MAX_ENDED)
        return None

    def _is_sound(self, answer: bytes) -> bool:
        return len(answer) == SIDE_PX * SIDE_PX * 3 if self._form == AS_TILE else answer.startswith(b"\xff\xd8\xff")
