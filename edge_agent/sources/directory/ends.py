"""Which settled pictures have their end: one without it waits, alone, until it is whole or was left alone for long."""

from collections.abc import Sequence
from pathlib import Path

from edge_agent.sources.directory.picture_end import has_end
from edge_agent.sources.files.scan import FoundFile
from edge_agent.sources.files.watched import open_watched

_Key = tuple[str, int, int, int]


class PictureEnds:
    """Looks at each settled file once, and again when it changed.

    Args:
        folder: where the files are.
        max_settle_s: a picture without its end that stays as it is for so long is let through.
    """

    def __init__(self, folder: Path, max_settle_s: float) -> None:
        self._folder = folder
        self._max_settle_s = max_settle_s
        self._ends: dict[_Key, bool | None] = {}
        self._since: dict[_Key, float] = {}

    def complete(self, settled: Sequence[FoundFile], here: Sequence[FoundFile], now_s: float) -> list[FoundFile]:
        """The settled files, less the pictures whose end may still come; `here` are all files that are not captured yet."""
        known = {file.identity for file in here}
        self._since = {key: since for key, since in self._since.items() if key in known}
        self._ends = {key: end for key, end in self._ends.items() if key in known}
        return [file for file in settled if self._may_go(file, now_s)]

    def take(self, file: FoundFile) -> bool | None:
        """Whether a file that was let through has its end; None where its format does not tell."""
        return self._ends.pop(file.identity, None)

    def _may_go(self, file: FoundFile, now_s: float) -> bool:
        key = file.identity
        since_s = self._since.get(key)
        if since_s is None:
            self._ends[key] = self._look(file)
            if self._ends[key] is not False:
                return True
            since_s = self._since[key] = now_s
        return now_s - since_s >= self._max_settle_s

    def _look(self, file: FoundFile) -> bool | None:
        try:
            with open_watched(self._folder, file.name) as opened:
                return has_end(opened, file.size, file.name)
        except OSError:
            return None  # the reading of the file meets this again, and counts it
