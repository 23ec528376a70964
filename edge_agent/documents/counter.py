"""The newest document of a kind that this device ever took: kept twice, so that no older one is taken after rot or a kill."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import structlog

from catchment.runtime.atomic_files import make_folder, write_atomic

FOLDER = "documents"
_MAX_BYTES = 2_000
_FIELDS = 4

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Seen:
    """The newest document taken.

    Attributes:
        counter: its counter; 0: none was taken.
        digest: of its body; empty: unknown.
    """

    counter: int = 0
    digest: str = ""

    def is_same(self, counter: int, digest: str) -> bool:
        """Whether a document is the one that was taken, perhaps signed again with another time or key."""
        return counter == self.counter and self.digest in {"", digest}


class CounterFile:
    """The newest document taken, in two files. Used by one thread.

    The counter goes on as long as one of the keys under which it was noted is still trusted. A device that trusts none
    of them any more begins again: that is how an operator recovers from a lost counter in the core.

    Args:
        state_dir: the agent's folder; the files go to `documents/` below it.
        kind: of the documents.
        keys: the public keys trusted now.
    """

    def __init__(self, state_dir: Path, kind: str, keys: Sequence[str]) -> None:
        folder = state_dir / FOLDER
        self._files = (folder / f"{kind}.counter", folder / f"{kind}.counter.copy")
        self._keys = tuple(sorted(keys))
        found = [note for path in self._files if (note := _read(path)) is not None]
        known = [seen for seen, keys_then in found if set(keys_then) & set(self._keys)]
        self.seen = self._kept = max(known, key=lambda seen: seen.counter, default=Seen())
        if self.seen.counter and (len(found) < len(self._files) or any(note != (self.seen, self._keys) for note in found)):
            # The keys changed, or one of the two is behind. Without this the counter could be lost at the next change.
            self._refresh()

    def note(self, seen: Seen) -> None:
        """Keep what is about to be applied, durably, before it is. A lower counter changes nothing.

        Raises:
            OSError: the disk refused; nothing may be applied.
        """
        if seen.counter >= self.seen.counter and seen != self._kept:
            self._write(seen)

    def raise_to(self, seen: Seen) -> None:
        """Take into account what another file tells of the newest document."""
        if seen.counter > self.seen.counter:
            self.seen = seen

    def _write(self, seen: Seen) -> None:
        make_folder(self._files[0].parent)
        for path in self._files:
            write_atomic(path, _encode(seen, self._keys))
        self.seen = self._kept = seen

    def _refresh(self) -> None:
        try:
            self._write(self.seen)
        except OSError as error:
            log.warning("document_counter_not_refreshed", file=str(self._files[0]), error=str(error))


def _read(path: Path) -> tuple[Seen, tuple[str, ...]] | None:
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES)
    except FileNotFoundError:
        return None
    except OSError as error:
        log.error("document_counter_unreadable", file=str(path), error=str(error))  # noqa: TRY400  # the reason says it all
        return None
    fields = text.decode(errors="replace").split()
    if len(fields) == _FIELDS and fields[0].isdecimal():
        seen, keys = Seen(int(fields[0]), fields[1].removeprefix("-")), tuple(fields[2].split(","))
        if text == _encode(seen, keys):
            return seen, keys
    log.error("document_counter_damaged", file=str(path))
    return None


def _encode(seen: Seen, keys: Sequence[str]) -> bytes:
    # The sum tells a rotten digit from a written one: a counter that rot made high would refuse every document to come.
    line = f"{seen.counter} {seen.digest or '-'} {','.join(keys)}"
    return f"{line} {hashlib.sha256(line.encode()).hexdigest()}\n".encode()
