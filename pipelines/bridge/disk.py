"""What is left of the disk that a bridge writes to: plenty, little, or so little that nothing more is landed."""

import errno
from pathlib import Path

from pipelines.bridge.parts_room import free_bytes_of, size_bytes_of
from pipelines.config import ShareConfig

_LOW_PART, _MIN_PART = 10, 20


class Disk:
    """Looks at the disk of a folder.

    Args:
        folder: on it.
        config: below how many free bytes it is low, and full; on a small disk a tenth and a twentieth of it are enough.

    Raises:
        OSError: the disk does not answer.
    """

    def __init__(self, folder: Path, config: ShareConfig) -> None:
        size_bytes = size_bytes_of(folder)
        self._folder = folder
        self.min_free_bytes = min(config.min_free_bytes, size_bytes // _MIN_PART)
        self.low_free_bytes = max(self.min_free_bytes, min(config.low_free_bytes, size_bytes // _LOW_PART))

    def low_room_bytes(self) -> int | None:
        """What may still be written where little is left; None: there is plenty, or the disk does not answer."""
        try:
            free_bytes = free_bytes_of(self._folder)
        except OSError:
            return None  # the write that follows meets the same disk, and says so
        return None if free_bytes >= self.low_free_bytes else max(0, free_bytes - self.min_free_bytes)

    def demand_room(self) -> None:
        """Refuse to fill the disk: runs, and whatever else lives on it, need some of it to make room again.

        Raises:
            OSError: less is free than `min_free_bytes`.
        """
        free_bytes = free_bytes_of(self._folder)
        if free_bytes < self.min_free_bytes:
            raise OSError(
                errno.ENOSPC, f"{free_bytes} bytes are free, {self.min_free_bytes} stay so; make room", str(self._folder)
            )
