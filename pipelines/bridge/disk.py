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

    def free_bytes(self) -> int:
        """What may be written to it now, the part that stays free not taken off. 0 where it does not answer.

        The write that follows meets the same disk, and says so.
        """
        try:
            return free_bytes_of(self._folder)
        except OSError:
            return 0

    def low_room_bytes(self, free_bytes: int) -> int | None:
        """What may still be written where so much is free; None: there is plenty."""
        return None if free_bytes >= self.low_free_bytes else max(0, free_bytes - self.min_free_bytes)

    def demand_room(self, new_bytes: int) -> None:
        """Refuse to fill the disk: runs, and whatever else lives on it, need some of it to make room again.

        Raises:
            OSError: less than `min_free_bytes` would be left.
        """
        free_bytes = free_bytes_of(self._folder)
        if free_bytes - new_bytes < self.min_free_bytes:
            reason = f"{free_bytes} bytes are free, {new_bytes} wait, {self.min_free_bytes} stay free; make room"
            raise OSError(errno.ENOSPC, reason, str(self._folder))
