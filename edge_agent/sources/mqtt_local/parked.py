"""Messages that a setting would make readable, kept on disk until it is there: the broker need not hold them, and others pass.

A file holds the messages of one read. A message has a number that is never used twice, so that one whose samples were stored
and which was not removed in time is known again.
"""

import contextlib
from collections.abc import Collection, Sequence
from pathlib import Path

import msgspec
import structlog

from catchment.runtime.atomic_files import make_folder, sync_folder, write_atomic

MAX_PARKED_BYTES = 64 * 1024 * 1024

log = structlog.get_logger(__name__)


class ParkedMessage(msgspec.Struct, frozen=True):
    """A message as it came. `at_us`: when, microseconds since 1970."""

    number: int
    topic: str
    body: bytes
    at_us: int


class ParkedMessages:
    """The parked messages of one source. Used by its thread alone.

    Args:
        folder: where they are; made when the first is parked.
        max_bytes: of all files; above it nothing more is taken.
    """

    def __init__(self, folder: Path, max_bytes: int = MAX_PARKED_BYTES) -> None:
        self._folder = folder
        self._max_bytes = max_bytes
        self._files: dict[Path, list[ParkedMessage]] = {}
        self._sizes: dict[Path, int] = {}
        for path in sorted(folder.glob("*.json")):
            self._load(path)
        numbers = [message.number for message in self.messages]
        self._next = max(numbers, default=0) + 1

    @property
    def messages(self) -> list[ParkedMessage]:
        """All of them, in the order in which they came."""
        return [message for path in sorted(self._files) for message in self._files[path]]

    def __len__(self) -> int:
        return sum(map(len, self._files.values()))

    def add(self, messages: Sequence[tuple[str, bytes]], at_us: int) -> bool:
        """Keep these (topic, body); durable when it returns True. False: there is no room, and nothing was kept."""
        # Numbers follow the clock, so that none comes again after a restart that found nothing parked.
        first = max(self._next, at_us)
        parked = [ParkedMessage(first + index, topic, body, at_us) for index, (topic, body) in enumerate(messages)]
        encoded = msgspec.json.encode(parked)
        if sum(self._sizes.values()) + len(encoded) > self._max_bytes:
            return False
        path = self._folder / f"{first:020d}.json"
        try:
            make_folder(self._folder)
            write_atomic(path, encoded)
        except OSError as error:
            log.warning("messages_not_parked", folder=str(self._folder), error=str(error))
            return False
        self._files[path], self._sizes[path] = parked, len(encoded)
        self._next = first + len(parked)
        return True

    def remove(self, numbers: Collection[int]) -> None:
        """Forget these: their samples are stored.

        Raises:
            OSError: the disk refused; they are known by their numbers until it does not.
        """
        if not numbers:
            return
        for path, messages in list(self._files.items()):
            left = [message for message in messages if message.number not in numbers]
            if len(left) == len(messages):
                continue
            if left:
                write_atomic(path, msgspec.json.encode(left))
                self._files[path] = left
                continue
            path.unlink(missing_ok=True)
            del self._files[path], self._sizes[path]
        with contextlib.suppress(FileNotFoundError):
            sync_folder(self._folder)

    def _load(self, path: Path) -> None:
        try:
            body = path.read_bytes()
            self._files[path] = msgspec.json.decode(body, type=list[ParkedMessage])
            self._sizes[path] = len(body)
        except (OSError, msgspec.MsgspecError) as error:
            # Left where it is: a person may still read what a program cannot.
            log.warning("parked_messages_unreadable", path=str(path), error=str(error))
