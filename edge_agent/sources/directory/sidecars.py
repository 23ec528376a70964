"""What is known of a picture beside its own bytes: a JSON file of its name, a row of a table, a mask."""

import csv
import errno
from io import TextIOWrapper
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.beneath import IS_FOLDER, RefusedFileError, rooted, status_beneath
from edge_agent.errors import ConfigError
from edge_agent.sources.files.watched import is_there, open_watched
from edge_agent.sources.rejects import Rejects
from edge_agent.sources.rows.json_text import read_json

MAX_SIDECAR_BYTES = 8 * 1024 * 1024
_MAX_TABLE_BYTES = 256 * 1024 * 1024
_MAX_MASK_BYTES = 16 * 1024 * 1024


class Sidecars:
    """Finds `<name>.json` or `<stem>.json`, and `<stem>.png` in the folder of masks.

    Args:
        watched: folder of the pictures; what lies in it is somebody else's, be it named by the configuration or not.
        folder: where the JSON files are.
        masks: where the masks are; None for no masks.
        rejects: where unreadable sidecars are counted; the picture is captured without them.
    """

    def __init__(self, watched: Path, folder: Path, masks: Path | None, rejects: Rejects) -> None:
        self._folder = rooted(folder, watched)
        self._masks = None if masks is None else rooted(masks, watched)
        self._rejects = rejects

    def name(self, name: str) -> str | None:
        """The name of a picture's JSON file, if there is one."""
        names = (f"{name}.json", f"{Path(name).stem}.json")
        return next((each for each in names if is_there(*_below(self._folder, each))), None)

    def read(self, name: str) -> dict[str, Any]:
        """Its content; labelme's documents become one value, `annotation`, without the copy of the picture in them."""
        sidecar = self.name(name)
        body = None if sidecar is None else self._bytes(self._folder, sidecar, "sidecar", MAX_SIDECAR_BYTES)
        if body is None:
            return {}
        try:
            found = read_json(body.decode())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._rejects.count("cell: sidecar is no JSON", name)
            return {}
        if not isinstance(found, dict):
            self._rejects.count("cell: sidecar is no JSON object", name)
            return {}
        if "shapes" not in found:
            return found
        found.pop("imageData", None)
        return {"annotation": msgspec.json.encode(found).decode()}

    def mask(self, name: str) -> bytes | None:
        """The mask of a picture, if there is one."""
        return None if self._masks is None else self._bytes(self._masks, f"{Path(name).stem}.png", "mask", _MAX_MASK_BYTES)

    def _bytes(self, place: tuple[Path, str], name: str, what: str, limit: int) -> bytes | None:
        try:
            with open_watched(*_below(place, name)) as file:
                body = file.read(limit + 1)
        except (FileNotFoundError, NotADirectoryError):
            return None
        except RefusedFileError as error:
            if error.strerror != IS_FOLDER:
                self._rejects.count(f"cell: {what} is {error.strerror}", name)
            return None
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None  # a picture's name may be so long that no other can be made of it
            self._rejects.count(f"cell: {what} cannot be read ({error.strerror})", name)
            return None
        if len(body) > limit:
            self._rejects.count(f"cell: {what} above {limit} bytes", name)
            return None
        return body


def _below(place: tuple[Path, str], name: str) -> tuple[Path, str]:
    root, inner = place
    return root, f"{inner}/{name}" if inner else name


class AttributeTable:
    """A CSV table with a row per picture, found by the column file, file_name, filename or the first."""

    _KEYS = ("file", "file_name", "filename", "name")

    def __init__(self, watched: Path, path: Path, rejects: Rejects) -> None:
        self._path = path
        root, inner = rooted(path, watched)
        self._place = (root, inner) if inner else (path.parent, path.name)
        self._rejects = rejects
        self._seen: tuple[int, int] = (0, 0)
        self._rows: dict[str, dict[str, object]] = {}
        self.refresh()

    def refresh(self) -> None:
        """Read it again if it changed.

        Raises:
            ConfigError: it is missing, above the size limit or has no header.
        """
        try:
            now = status_beneath(*self._place)
            if (now.st_mtime_ns, now.st_size) == self._seen:
                return
            if now.st_size > _MAX_TABLE_BYTES:
                raise ConfigError(f"{self._path}: a table of attributes may have at most {_MAX_TABLE_BYTES} bytes")
            with TextIOWrapper(open_watched(*self._place), "utf-8-sig", errors="replace", newline="") as file:
                self._rows = self._read(csv.DictReader(file))
            self._seen = (now.st_mtime_ns, now.st_size)
        except OSError as error:
            raise ConfigError(f"{self._path}: cannot be read ({error.strerror}); correct `attributes`") from error
        except csv.Error as error:
            raise ConfigError(f"{self._path}: no CSV ({error}); correct `attributes`") from error

    def _read(self, table: "csv.DictReader[str]") -> dict[str, dict[str, object]]:
        names = list(table.fieldnames or ())
        if not names:
            raise ConfigError(f"{self._path}: has no header row; its first row must name the columns")
        key = next((name for name in names if name.lower() in self._KEYS), names[0])
        rows: dict[str, dict[str, object]] = {}
        for row in table:
            name = Path(row.pop(key) or "").name
            if None in row:
                self._rejects.count("cell: a row of attributes has more cells than names", name)
            rows[name] = {column: cell for column, cell in row.items() if column is not None and cell}
        return rows

    def row(self, name: str) -> dict[str, object]:
        """What the table says of a picture; empty if nothing."""
        return self._rows.get(name, {})
