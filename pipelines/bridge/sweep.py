"""Takes abandoned large payloads away: parts whose device has not sent any more for days will hardly come whole."""

import time
from pathlib import Path

import structlog

from pipelines.bridge.parts import PARTS_FOLDER, Assembler
from pipelines.bridge.received_ranges import RECEIVED_SUFFIX

log = structlog.get_logger(__name__)
EVERY_S = 3_600.0


class Sweeper:
    """Looks for abandoned parts now and then, on the disk thread.

    Args:
        objects: `<lake>/objects`.
        assembler: whose parts they are.
        keep_s: how long parts lie untouched before they count as abandoned.
    """

    def __init__(self, objects: Path, assembler: Assembler, keep_s: float) -> None:
        self.swept = 0
        self.swept_bytes = 0
        self._parts = objects / PARTS_FOLDER
        self._assembler = assembler
        self._keep_s = keep_s
        self._due_s = 0.0

    def sweep_if_due(self, now_s: float) -> None:
        """Look, once an hour.

        Args:
            now_s: monotonic seconds.

        Raises:
            OSError: the disk refused.
        """
        if now_s < self._due_s:
            return
        self._due_s = now_s + EVERY_S
        before = time.time() - self._keep_s
        for folder in sorted(self._parts.iterdir()):
            for path in {path.with_name(path.name.removesuffix(RECEIVED_SUFFIX)) for path in folder.iterdir()}:
                self._sweep(path, before)

    def _sweep(self, path: Path, before: float) -> None:
        files = [file for file in (path, path.with_name(path.name + RECEIVED_SUFFIX)) if file.exists()]
        if not files or max(file.stat().st_mtime for file in files) >= before or self._assembler.is_hashing(path):
            return
        size = path.stat().st_size if path.exists() else 0
        self._assembler.forget(path)
        self.swept += 1
        self.swept_bytes += size
        log.warning("parts_abandoned", device=path.parent.name, digest=path.name, bytes=size)
