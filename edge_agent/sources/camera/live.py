"""A camera that does not wait: a thread takes its frames as they come, and what finds no place is counted."""

import threading
from collections import deque

from catchment.runtime.clock import Clock
from edge_agent.errors import SourceError
from edge_agent.sources.api import SampleBatch
from edge_agent.sources.camera.options import MAX_BATCH_BYTES, CameraFrame, CameraOptions, FrameBatches
from edge_agent.sources.camera.video import JpegEncoder, Video
from edge_agent.sources.rejects import Rejects
from schemas.contract import Contract

DROPPED = "row: frame dropped: the spool was slower than the camera"
_WAIT_S = 0.1
_STOP_S = 5.0


class LiveCamera:
    """Reads one camera.

    Attributes:
        rejected: reason -> frames refused.
    """

    def __init__(self, options: CameraOptions, contract: Contract, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects(f"camera {options.shown}")
        self._batches = FrameBatches(options, contract)
        self._video = Video(options, self._rejects)
        self._waiting: deque[CameraFrame] = deque()
        self._ready = threading.Condition()
        self._failure: Exception | None = None
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="camera", daemon=True)
        self._thread.start()

    @property
    def rejected(self) -> dict[str, int]:
        """Reason -> how many frames were refused since the source was built."""
        return dict(self._rejects.counts)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The frames that have come; None when none comes at once.

        Raises:
            SourceError: the camera is gone.
        """
        taken: list[CameraFrame] = []
        size = 0
        with self._ready:
            if not self._waiting and self._failure is None:
                self._ready.wait(_WAIT_S)
            while self._waiting and len(taken) < max_samples and size < MAX_BATCH_BYTES:
                taken.append(self._waiting.popleft())
                size += len(taken[-1].jpeg)
            if not taken and self._failure is not None:
                raise SourceError(str(self._failure)) from self._failure
        return self._batches.batch(taken, None, agent_clock=True) if taken else None

    def _run(self) -> None:
        try:
            self._take_frames()
            failure: Exception = SourceError("the camera's stream ended; it is opened again after a while")
        except Exception as error:  # noqa: BLE001 # told by the next read, which fails the source
            failure = error
        with self._ready:
            self._failure = failure
            self._ready.notify()

    def _take_frames(self) -> None:
        encoder = JpegEncoder(self._options.quality, self._options.max_width)
        step_s = 1 / self._options.rate_hz if self._options.rate_hz > 0 else 0.0
        next_s = float("-inf")
        for number, (_, frame) in enumerate(self._video.frames(None)):
            if self._stop.is_set():
                return
            now_s = self._clock.monotonic_s()
            if now_s < next_s:
                continue
            next_s = (now_s if now_s - next_s > step_s else next_s) + step_s
            time_us = self._clock.now_ms() * 1000
            if len(self._waiting) < self._options.max_waiting:
                self._put(CameraFrame(number, time_us, *encoder.encode(frame)))
            else:
                self._rejects.count(DROPPED)

    def _put(self, frame: CameraFrame) -> None:
        with self._ready:
            self._waiting.append(frame)
            self._ready.notify()

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: a camera does not repeat itself."""

    def close(self) -> None:
        """Stop reading; a camera that hangs is left to its time-out."""
        self._stop.set()
        self._thread.join(_STOP_S)
        if not self._thread.is_alive():
            self._video.close()
