"""Make samples of settled files: bytes or path, time, size of the picture, and its sidecar file, table row or mask."""

import csv
import errno
import os
from collections.abc import Sequence
from io import TextIOWrapper
from pathlib import Path
from typing import Any, Protocol

import msgspec

from catchment.runtime.beneath import IS_FOLDER, RefusedFileError, rooted, status_beneath
from edge_agent.errors import ConfigError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.directory.picture_formats import read_image_header
from edge_agent.sources.files.watched import CHANGED, FoundFile, WatchedFile, is_there, open_watched
from edge_agent.sources.rows.cells import CellError, start_time_us, to_time
from edge_agent.sources.rows.mapping import ColumnMapper
from edge_agent.sources.rows.tables import objects_chunk, read_json
from schemas.contract import Contract
from schemas.written_values import NumberForm, TimeForm

MAX_SIDECAR_BYTES = 8 * 1024 * 1024
_MAX_TABLE_BYTES = 256 * 1024 * 1024
_MAX_MASK_BYTES = 16 * 1024 * 1024

COMPLETE = "payload_complete"
_EXTRA_COLUMNS = ("mask", "file_name", "media_type", "width", "height", COMPLETE)


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
        """Return the table's row for a picture; empty if there is none."""
        return self._rows.get(name, {})


class FileOptions(Protocol):
    """The options that say what becomes of a file."""

    @property
    def path(self) -> str: ...  # noqa: D102  # told in edge_agent.sources.directory.source
    @property
    def pattern(self) -> str | tuple[str, ...]: ...  # noqa: D102
    @property
    def sidecars(self) -> str: ...  # noqa: D102
    @property
    def masks(self) -> str: ...  # noqa: D102
    @property
    def attributes(self) -> str: ...  # noqa: D102
    @property
    def rename(self) -> dict[str, str]: ...  # noqa: D102
    @property
    def time(self) -> str: ...  # noqa: D102
    @property
    def time_start(self) -> str: ...  # noqa: D102
    @property
    def columns(self) -> dict[str, str | int | float | bool]: ...  # noqa: D102
    @property
    def numbers(self) -> NumberForm: ...  # noqa: D102
    @property
    def times(self) -> TimeForm: ...  # noqa: D102
    @property
    def part_threshold_bytes(self) -> int: ...  # noqa: D102


class FileSamples:
    """Reads files into batches. What the table and the sidecar say wins over what is read from the picture."""

    def __init__(self, options: FileOptions, contract: Contract, rejects: Rejects) -> None:
        self._options = options
        self._folder = Path(options.path)
        self._rejects = rejects
        self._media_types = contract.payload.media_types if contract.payload is not None and contract.column("media_type") else ()
        self._known = {name for name in _EXTRA_COLUMNS if contract.column(name) is not None}
        masks = Path(options.masks) if options.masks and contract.column("mask") is not None else None
        sidecars = Path(options.sidecars) if options.sidecars else self._folder
        self._has_sidecars_here = sidecars == self._folder
        self._sidecars = Sidecars(self._folder, sidecars, masks, rejects)
        self._table = AttributeTable(self._folder, Path(options.attributes), rejects) if options.attributes else None
        self._mapper = ColumnMapper(contract, options.rename, frozenset({""}), rejects, None, options.numbers, options.times)

    @property
    def left_out(self) -> set[str]:
        """Names of sidecars and table that fill no column."""
        return self._mapper.left_out

    @property
    def matched(self) -> dict[str, str]:
        """Column -> the name it was filled from."""
        return self._mapper.matched

    def refresh(self) -> None:
        """See changes of the table of attributes."""
        if self._table is not None:
            self._table.refresh()

    def names(self, name: str) -> list[str]:
        """The file and the sidecar that stands in the same folder: what is moved away together."""
        sidecar = self._sidecars.name(name) if self._has_sidecars_here else None
        return [name] if sidecar is None else [name, sidecar]

    def read(self, files: Sequence[FoundFile], ends: Sequence[bool | None]) -> tuple[SampleBatch | None, list[FoundFile]]:
        """One batch of all files that can be read, in order, and which those are; the others are counted and left in place.

        Args:
            files: to be read.
            ends: whether each has its end, as its format tells.
        """
        read: list[FoundFile] = []
        rows: list[dict[str, object]] = []
        times: list[int] = []
        payloads: list[bytes | Path | None] = []
        for file, is_complete in zip(files, ends, strict=True):
            try:
                payload, row = self._one(file)
            except OSError as error:
                self._rejects.count(f"file: cannot be read ({error.strerror})", file.name)
                continue
            if not self._is_taken(row):
                self._rejects.count(f"file: {row.get('media_type') or 'no picture'} is nothing for this contract", file.name)
                continue
            time_us = self._time_us(file, row)
            if time_us is None:
                continue
            read.append(file)
            times.append(time_us)
            if COMPLETE in self._known and False in ends:
                # In no other batch, so that a core that does not know the column yet takes those.
                row.setdefault(COMPLETE, is_complete)
            elif is_complete is False:
                self._rejects.count(f"cell payload: the picture has no end, and the contract no {COMPLETE} to say so", file.name)
            rows.append(row)
            payloads.append(payload)
        if not rows:
            return None, []
        columns: dict[str, Sequence[Scalar]] = self._mapper.convert(objects_chunk(rows), frozenset({self._options.time}))
        return SampleBatch(times, columns, payloads, agent_clock=self._options.time == "mtime"), read

    def _is_taken(self, row: dict[str, object]) -> bool:
        """Whether the contract takes a file; looked at where no pattern was chosen: who chose one gets what it matches."""
        types = self._media_types
        return not types or bool(self._options.pattern) or row.get("media_type") in types

    def _one(self, file: FoundFile) -> tuple[bytes | Path, dict[str, object]]:
        row: dict[str, object] = {"file_name": file.shown}
        with open_watched(self._folder, file.name) as opened:
            header = read_image_header(opened)
            if header is not None:
                row |= {"media_type": header.media_type, "width": header.width, "height": header.height}
            opened.seek(0)
            is_large = file.size > self._options.part_threshold_bytes
            payload = None if is_large else opened.read()
            now = os.fstat(opened.fileno())
        if (now.st_mtime_ns, now.st_size, now.st_ino) != (file.modified_ns, file.size, file.inode):
            # Written again, or exchanged, since it settled: the next look finds it as a new file.
            raise OSError(errno.EAGAIN, CHANGED)
        mask = self._sidecars.mask(file.name)
        if mask is not None:
            row["mask"] = mask
        row = {name: value for name, value in row.items() if name in self._known}
        row |= self._options.columns
        row |= self._table.row(file.name) if self._table is not None else {}
        row |= self._sidecars.read(file.name)
        return payload if payload is not None else WatchedFile.found(self._folder, file.name, now), row

    def _time_us(self, file: FoundFile, row: dict[str, object]) -> int | None:
        """When a file's sample was; None, counted, where a setting is missing to tell, for which the file waits."""
        own_us = file.modified_ns // 1000
        if self._options.time == "mtime":
            return own_us
        form = self._options.times
        start_us = start_time_us(self._options.time_start, form.zone) if self._options.time_start else 0
        try:
            found = to_time(row.get(self._options.time), form, near_us=own_us)
        except CellError as error:
            if error.needs == "time_zone":
                self._rejects.count(f"file: its {self._options.time} is {error}; set time_zone: it waits", file.name)
                return None
            # The picture is worth more than its exact time: it is captured, and the substitution is counted.
            self._rejects.count(f"cell {self._options.time}: {error}; the file's own time is used", file.name)
            return own_us
        if found.doubt:
            self._rejects.count(f"cell {self._options.time}: {found.doubt}", file.name)
        return start_us + found.micros
