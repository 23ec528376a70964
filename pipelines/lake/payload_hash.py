"""The SHA-256 of a file that is being written, taken while it grows, so that nobody reads it again at the end."""

import hashlib
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

_BLOCK_BYTES = 1024 * 1024
_FOLLOWED_BYTES = 8 * 1024 * 1024


class TrailingHash:
    """Follows a file of which what is written never changes again. Use `close` where `finish` was not reached.

    A thread hashes what is there whenever some megabytes have come; a small file has none.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("rb")
        self._digest = hashlib.sha256()
        self._block = bytearray(_BLOCK_BYTES)
        self._asked_bytes = 0
        self._thread: ThreadPoolExecutor | None = None
        self._last: Future[None] | None = None

    def follow(self) -> None:
        """Some more was written.

        Raises:
            OSError: what was written before could not be read.
        """
        size = os.fstat(self._file.fileno()).st_size
        if size - self._asked_bytes < _FOLLOWED_BYTES:
            return
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, "payload-hash")
        if self._last is not None and self._last.done():
            self._last.result()
        self._asked_bytes = size
        self._last = self._thread.submit(self._take, size)

    def finish(self) -> tuple[int, str]:
        """Take the rest, and make the file durable. Gives its bytes and the digest.

        Raises:
            OSError: the disk refused.
        """
        if self._last is not None:
            self._last.result()
        size = os.fstat(self._file.fileno()).st_size
        self._take(size)
        os.fsync(self._file.fileno())
        self.close()
        return size, self._digest.hexdigest()

    def close(self) -> None:
        """Stop following."""
        if self._thread is not None:
            self._thread.shutdown()
        self._file.close()

    def _take(self, size: int) -> None:
        view = memoryview(self._block)
        while self._file.tell() < size:
            got = self._file.readinto(view[: min(_BLOCK_BYTES, size - self._file.tell())])
            self._digest.update(view[:got])
