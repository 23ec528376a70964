"""What is known of a picture beside its own bytes: a JSON file of its name, a row of a table, a mask."""

import csv
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.capture.json_text import read_json
from edge_agent.capture.rejects import Rejects
from edge_agent.errors import ConfigError

MAX_SIDECAR_BYTES = 8 * 1024 * 1024
_MAX_TABLE_BYTES = 256 * 1024 * 1024
_MAX_MASK_BYTES = 16 * 1024 * 1024


class Sidecars:
    """Finds `<name>.json` or `<stem>.json`, and `<stem>.png` in the folder of masks.

    Args:
        folder: where the JSON files are.
        masks: where the masks are; None for no masks.
        rejects: where unreadable sidecars are counted; the picture is captured without them.
    """

    def __init__(self, folder: Path, masks: Path | None, rejects: Rejects) -> None:
        self._folder = folder
        self._masks = masks
        self._rejects = rejects

    def path(self, name: str) -> Path | None:
        """The JSON file of a picture, if there is one."""
        whole, stem = self._folder / f"{name}.json", self._folder / f"{Path(name).stem}.json"
        return whole if _is_file(whole) else stem if _is_file(stem) else None

    def read(self, name: str) -> dict[str, Any]:
        """Its content; labelme's documents become one value, `annotation`, without the copy of the picture in them."""
        path = self.path(name)
        body = self._bytes(path, MAX_SIDECAR_BYTES)
        if body is None:
            return {}
        try:
            found = read_json(body.decode())
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            self._rejects.count("cell: sidecar is no JSON", str(path))
            return {}
        if not isinstance(found, dict):
            self._rejects.count("cell: sidecar is no JSON object", str(path))
            return {}
        if "shapes" not in found:
            return found
        found.pop("imageData", None)
        return {"annotation": msgspec.json.encode(found).decode()}

    def mask(self, name: str) -> bytes | None:
        """The mask of a picture, if there is one."""
        path = None if self._masks is None else self._masks / f"{Path(name).stem}.png"
        return self._bytes(path, _MAX_MASK_BYTES) if path is not None and _is_file(path) else None

    def _bytes(self, path: Path | None, limit: int) -> bytes | None:
        if path is None:
            return None
        try:
            with path.open("rb") as file:
                body = file.read(limit + 1)
        except OSError as error:
            self._rejects.count(f"cell: sidecar cannot be read ({error.strerror})", str(path))
            return None
        if len(body) > limit:
            self._rejects.count(f"cell: sidecar above {limit} bytes", str(path))
            return None
        return body


def _is_file(path: Path) -> bool:
    """Whether there is such a file; a name that is too long to be one belongs to none."""
    try:
        return path.is_file()
    except OSError:
        return False


class AttributeTable:
    """A CSV table with a row per picture, found by the column file, file_name, filename or the first."""

    _KEYS = ("file", "file_name", "filename", "name")

    def __init__(self, path: Path, rejects: Rejects) -> None:
        self._path = path
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
            stat = self._path.stat()
            if (stat.st_mtime_ns, stat.st_size) == self._seen:
                return
            if stat.st_size > _MAX_TABLE_BYTES:
                raise ConfigError(f"{self._path}: a table of attributes may have at most {_MAX_TABLE_BYTES} bytes")
            with self._path.open(encoding="utf-8-sig", errors="replace", newline="") as file:
                self._rows = self._read(csv.DictReader(file))
            self._seen = (stat.st_mtime_ns, stat.st_size)
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
