"""Fill in the columns that inspect steps give, for a whole table: from the cache, else computed; never over a device's own.

Results are cached by step and SHA-256 of the payload; losing the cache costs time, nothing else. Answers that could tell
about a person are not put there. Files of earlier releases, which hold some, are emptied.

Near-duplicates in a row are marked as bursts: of a camera that stands still, only the first picture is new.
"""

import atexit
import sqlite3
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import msgspec
import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import structlog

from pipelines.contracts.arrow import ARROW_TYPES
from pipelines.errors import ConfigError, InterruptedInspectionError, UninspectableError
from pipelines.inspect.code import MAX_KILLS, UserWorker, checked_code
from pipelines.inspect.columns import ERRORS, own_patterns, step_columns, step_digest
from pipelines.inspect.image import ModelInspector, exif_facts, image_facts
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.lake import Lake
from schemas.contract import PiiClass
from schemas.inspectors import MAX_TEXT_CHARS, PATTERNS
from schemas.policy import InspectStep

log = structlog.get_logger(__name__)

MAX_BYTES = 1024 * 1024 * 1024
_PAGE_BYTES = 4096
_DIGESTS_PER_QUERY = 500
_VERSION = 1
_TABLE = """CREATE TABLE IF NOT EXISTS found (step TEXT, sha256 TEXT, body BLOB, PRIMARY KEY (step, sha256)) WITHOUT ROWID"""
ENTRY_POINTS = "catchment.inspectors"
Payloads = Callable[[int], bytes | None]
Values = Sequence[Any]

NEAR_BITS = 6
# A part that comes by a minute later is another part, however alike the pictures are.
NEAR_S = 10.0
_US = 1_000_000


def compiled_patterns(options: Mapping[str, object]) -> dict[str, str]:
    """The patterns of a step by name, the ordinary ones and its own.

    Raises:
        ConfigError: the engine does not take one of them.
    """
    found = {**PATTERNS, **own_patterns(options)}
    for name, pattern in found.items():
        try:
            pl.Series([""]).str.count_matches(pattern)
        except pl.exceptions.PolarsError as error:
            raise ConfigError(f"inspector text: pattern {name} is not taken: {str(error).splitlines()[0]}") from error
    return found


def count_patterns(texts: pa.Array, patterns: Mapping[str, str]) -> dict[str, pa.Array]:
    """For each pattern, how often it occurs in each text; null for no text. Text beyond a million characters is not read."""
    raw: Any = pl.from_arrow(texts)
    column: pl.Series = raw.str.slice(0, MAX_TEXT_CHARS)
    frame = pl.DataFrame({"text": column})
    counted = frame.select(
        pl.col("text").str.count_matches(pattern).cast(pl.Int32).alias(name) for name, pattern in patterns.items()
    )
    return {f"text_{name}": counted.get_column(name).to_arrow() for name in patterns}


class InspectCache:
    """One file below the lake root, shared by the workers of a run.

    Args:
        path: the file; "" keeps nothing.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path

    def get(self, step: str, digests: Sequence[str]) -> dict[str, bytes]:
        """Return the cached results of these payloads."""
        if self._path is None or not self._path.exists():
            return {}
        found: dict[str, bytes] = {}
        try:
            with _Transaction(self._path) as database:
                for start in range(0, len(digests), _DIGESTS_PER_QUERY):
                    chunk = digests[start : start + _DIGESTS_PER_QUERY]
                    marks = ",".join("?" * len(chunk))
                    query = f"SELECT sha256, body FROM found WHERE step = ? AND sha256 IN ({marks})"  # noqa: S608  # marks alone
                    found.update(database.execute(query, (step, *chunk)))
        except sqlite3.Error as error:
            log.warning("inspect_cache_unread", path=str(self._path), reason=str(error))
            return {}
        return found

    def put(self, step: str, found: Iterable[tuple[str, bytes]]) -> None:
        """Remember what was found; when the file is full, or in use for long, nothing is remembered."""
        if self._path is None:
            return
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with _Transaction(self._path) as database:
                database.execute(_TABLE)
                rows = ((step, digest, body) for digest, body in found)
                database.executemany("INSERT OR REPLACE INTO found VALUES (?, ?, ?)", rows)
        except (sqlite3.Error, OSError) as error:
            log.warning("inspect_cache_unwritten", path=str(self._path), reason=str(error))


class _Transaction:
    """A connection for one piece of work: committed and closed at its end."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(path, timeout=5.0)
        self._connection.execute(f"PRAGMA max_page_count = {MAX_BYTES // _PAGE_BYTES}")
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = NORMAL")
        self._empty_if_old()

    def _empty_if_old(self) -> None:
        if self._connection.execute("PRAGMA user_version").fetchone()[0] >= _VERSION:
            return
        self._connection.execute("PRAGMA secure_delete = ON")
        self._connection.execute("DROP TABLE IF EXISTS found")
        self._connection.execute(_TABLE)
        self._connection.execute(f"PRAGMA user_version = {_VERSION}")
        self._connection.execute("VACUUM")
        self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")

    def __enter__(self) -> sqlite3.Connection:
        return self._connection

    def __exit__(self, kind: object, *_: object) -> None:
        try:
            if kind is None:
                self._connection.commit()
        finally:
            self._connection.close()


@dataclass(frozen=True, slots=True)
class Inspected:
    """A step's columns for some rows, and per row what could not be done."""

    columns: dict[str, pa.Array]
    errors: list[str | None]


def inspect_rows(
    lake: Lake | None, rows: pa.Table, steps: Sequence[InspectStep], payload: Payloads, private: Collection[str] = ()
) -> pa.Table:
    """The rows with the columns of all steps; what a row has already stays.

    Args:
        lake: the lake, for the cache and the users' code; None: neither.
        rows: a stream's rows, with device, epoch, seq and, where there is a payload, payload_sha256.
        steps: what to compute.
        payload: gives the payload of a row by its place; None if there is none.
        private: columns of the stream that could tell about a person; steps that give one are asked each time.

    Raises:
        ConfigError: a step asks for what there is not.
        RefusedError: a model or a user's code does not load.
        CorruptLakeError: a user's code is not what was stored.
    """
    if not steps or not rows.num_rows:
        return rows
    cache = InspectCache(lake.root / "cache" / "inspect.sqlite" if lake else None)
    failures: list[str | None] = [None] * rows.num_rows
    for step in steps:
        found = _inspect(lake, rows, step, payload, InspectCache(None) if _is_private(step, private) else cache)
        for name, column in found.columns.items():
            rows = _filled(rows, name, column)
        for place, error in enumerate(found.errors):
            if error is not None:
                failures[place] = f"{failures[place]}; {step.use}: {error}" if failures[place] else f"{step.use}: {error}"
    return _filled(rows, ERRORS, pa.array(failures, pa.string()))


def check_step(step: InspectStep, path: Path | None) -> None:
    """Make sure that a step can be started.

    Args:
        step: the step.
        path: its file, where it has one.

    Raises:
        ConfigError: it asks for what there is not.
        RefusedError: its model or code does not load.
    """
    step_columns(step)
    if step.use == "text":
        compiled_patterns(step.options)
    elif step.use == "onnx":
        if path is None:
            raise ConfigError("inspector onnx: name the model with `file`")
        ModelInspector(path, step)
    elif step.columns:
        worker = _worker(step, path)
        try:
            _ = worker.wants_row
        finally:
            worker.close()


def _is_private(step: InspectStep, private: Collection[str]) -> bool:
    """Whether what the step gives must not lie in a cache: it would outlive the row, and nothing there is ever erased."""
    return any(column.pii is not PiiClass.NONE or column.name in private for column in step_columns(step))


def _inspect(lake: Lake | None, rows: pa.Table, step: InspectStep, payload: Payloads, cache: InspectCache) -> Inspected:
    if step.use == "text":
        return _inspect_text(rows, step, payload)
    names = [column.name for column in step_columns(step)]
    if step.use == "image":
        found = _each(rows, step, payload, cache, image_facts, names[:-2])
        return _with_bursts(rows, step, found)
    if step.use == "exif":
        return _each(rows, step, payload, cache, exif_facts, names)
    if step.use == "onnx":
        return _each(rows, step, payload, cache, _model(lake, msgspec.json.encode(step)).look, names)
    return _inspect_by_user(lake, rows, step, payload, cache)


def _each(
    rows: pa.Table, step: InspectStep, payload: Payloads, cache: InspectCache, look: Callable[[bytes], Values], names: list[str]
) -> Inspected:
    """A function of the payload alone, asked once for each content."""
    key = step_digest(step)
    digests = rows.column("payload_sha256").to_pylist() if "payload_sha256" in rows.column_names else [None] * rows.num_rows
    known = {digest: msgspec.msgpack.decode(body) for digest, body in cache.get(key, sorted({*filter(None, digests)})).items()}
    new: dict[str, bytes] = {}
    answers: list[tuple[Values | None, str | None]] = []
    for place, digest in enumerate(digests):
        answer = known.get(digest)
        if answer is None:
            answer = _inspected(look, payload(place))
            if digest is not None and answer[2]:
                known[digest] = answer
                new[digest] = msgspec.msgpack.encode(answer)
        answers.append((answer[0], answer[1]))
    if new:
        cache.put(key, new.items())
    return _columns(step, names, answers)


def _inspected(look: Callable[[bytes], Values], body: bytes | None) -> tuple[Values | None, str | None, bool]:
    """The values or the reason why not, and whether the same bytes would give the same again."""
    if body is None:
        return None, None, False
    try:
        return tuple(look(body)), None, True
    except UninspectableError as error:
        return None, str(error), not isinstance(error, InterruptedInspectionError)


def _columns(step: InspectStep, names: list[str], answers: list[tuple[Values | None, str | None]]) -> Inspected:
    types = {column.name: ARROW_TYPES[column.type] for column in step_columns(step)}
    columns = {
        name: pa.array([None if values is None else values[place] for values, _ in answers], types[name])
        for place, name in enumerate(names)
    }
    return Inspected(columns, [error for _, error in answers])


def _with_bursts(rows: pa.Table, step: InspectStep, found: Inspected) -> Inspected:
    devices, epochs, seqs = (rows.column(name).to_pylist() for name in ("device", "epoch", "seq"))
    hashes = found.columns["image_phash"].to_pylist()
    times_us = None
    if "event_time" in rows.column_names and pa.types.is_timestamp(rows.schema.field("event_time").type):
        times_us = rows.column("event_time").cast(pa.timestamp("us", "UTC")).cast(pa.int64()).to_pylist()
    near_bits, near_s = int(step.options.get("near_bits", NEAR_BITS)), float(step.options.get("near_s", NEAR_S))
    names, places = bursts(devices, epochs, seqs, hashes, times_us, near_bits, near_s)
    added = {"image_burst": pa.array(names, pa.string()), "image_burst_index": pa.array(places, pa.int32())}
    return Inspected({**found.columns, **added}, found.errors)


def _inspect_text(rows: pa.Table, step: InspectStep, payload: Payloads) -> Inspected:
    name = str(step.options.get("column", ""))
    if name:
        if name not in rows.column_names:
            raise ConfigError(f"inspector text: the stream has no column {name!r}")
        texts = rows.column(name).cast(pa.string()).combine_chunks()
    else:
        bodies = (payload(place) for place in range(rows.num_rows))
        texts = pa.array([None if body is None else body.decode("utf-8", "replace") for body in bodies], pa.string())
    return Inspected(count_patterns(texts, compiled_patterns(step.options)), [None] * rows.num_rows)


def _inspect_by_user(lake: Lake | None, rows: pa.Table, step: InspectStep, payload: Payloads, cache: InspectCache) -> Inspected:
    worker = _kept_worker(lake, msgspec.json.encode(step))
    book = SuspensionBook(lake) if lake else None
    if book is not None:  # another process may have suspended it, or a new version of its policy lifted it
        worker.sync_suspension(is_suspended=book.inspector(step) is not None)
    found = _answers_of_user(worker, rows, step, payload, cache)
    if book is not None and worker.is_suspended:
        book.suspend_inspector(step, f"killed {MAX_KILLS} times in a row, being late or out of memory")
    return found


def _answers_of_user(worker: UserWorker, rows: pa.Table, step: InspectStep, payload: Payloads, cache: InspectCache) -> Inspected:
    names = list(step.columns)

    def chosen(answer: dict[str, Any]) -> Values:
        return tuple(_fitting(step, name, answer.get(name)) for name in names)

    if not worker.is_suspended and not worker.wants_row and "payload_sha256" in rows.column_names:
        return _each(rows, step, payload, cache, lambda body: chosen(worker.ask(body, {})), names)
    shown = rows.drop_columns([name for name in ("payload",) if name in rows.column_names])
    answers: list[tuple[Values | None, str | None]] = []
    for place, row in enumerate(shown.to_pylist()):
        try:
            answers.append((chosen(worker.ask(payload(place), row)), None))
        except UninspectableError as error:
            answers.append((None, str(error)))
    return _columns(step, names, answers)


def _fitting(step: InspectStep, name: str, value: Any) -> Any:
    """The value, if Arrow takes it for the column's type."""
    try:
        return pa.scalar(value, ARROW_TYPES[step.columns[name]]).as_py()
    except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
        raise UninspectableError(f"{name} is a {type(value).__name__}, not of type {step.columns[name]}") from error


def _filled(rows: pa.Table, name: str, column: pa.Array) -> pa.Table:
    if name not in rows.column_names:
        return rows.append_column(name, column)
    place = rows.column_names.index(name)
    had = rows.column(place)
    return rows.set_column(place, rows.schema.field(place), pc.coalesce(had, column.cast(had.type)))


def _code(lake: Lake | None, step: InspectStep) -> Path:
    if lake is None:
        raise ConfigError(f"inspector {step.use}: its file is read from a lake; `catchment policy preview` runs it")
    return checked_code(lake, step)


@lru_cache(maxsize=16)
def _model(lake: Lake | None, step: bytes) -> ModelInspector:
    parsed = msgspec.json.decode(step, type=InspectStep)
    return ModelInspector(_code(lake, parsed), parsed)


@lru_cache(maxsize=16)
def _kept_worker(lake: Lake | None, step: bytes) -> UserWorker:
    parsed = msgspec.json.decode(step, type=InspectStep)
    worker = _worker(parsed, _code(lake, parsed) if parsed.code else None)
    atexit.register(worker.close)
    return worker


def _worker(step: InspectStep, path: Path | None) -> UserWorker:
    if path is not None:
        source, function = str(path.resolve()), step.function
    else:
        found = {point.name: point for point in entry_points(group=ENTRY_POINTS)}
        if step.use not in found:
            known = ", ".join(sorted(found)) or "none"
            raise ConfigError(f"inspector {step.use!r}: no entry point of {ENTRY_POINTS} has this name; there are {known}")
        source, function = found[step.use].module, found[step.use].attr
    return UserWorker(step.use, source, function, dict(step.options), step.max_ms, step.max_memory_mib)


def bursts(
    devices: Sequence[str | None],
    epochs: Sequence[int],
    seqs: Sequence[int],
    hashes: Sequence[str | None],
    times_us: Sequence[int | None] | None = None,
    near_bits: int = NEAR_BITS,
    near_s: float = NEAR_S,
) -> tuple[list[str | None], list[int | None]]:
    """For each row the burst it is of, `epoch-seq` of its first, and its place in it from 0; None without a hash.

    A row belongs to the burst before it in its device's order if its hash differs from that of the burst's first in at most
    `near_bits` of 64 bits: compared with the first and not with its neighbour, so that a slow change ends a burst. It must also
    have been captured within `near_s` of the burst's last, where both times are known.
    """
    times = times_us or [None] * len(hashes)
    order = sorted(range(len(hashes)), key=lambda row: (devices[row] or "", epochs[row], seqs[row]))
    names: list[str | None] = [None] * len(hashes)
    places: list[int | None] = [None] * len(hashes)
    device, first, name, place = "", 0, "", 0
    last_us: int | None = None
    for row in order:
        digest = hashes[row]
        if digest is None:
            continue
        bits = int(digest, 16)
        time_us = times[row]
        is_near = last_us is None or time_us is None or abs(time_us - last_us) <= near_s * _US
        if name and is_near and devices[row] == device and (bits ^ first).bit_count() <= near_bits:
            place += 1
        else:
            device, first, name, place = devices[row] or "", bits, f"{epochs[row]}-{seqs[row]}", 0
        last_us = time_us
        names[row], places[row] = name, place
    return names, places
