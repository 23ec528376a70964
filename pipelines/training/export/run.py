"""Export a set to a folder: whole or not at all, and recorded next to the set with its recipient and its expiry."""

import hashlib
import os
import shutil
from dataclasses import dataclass
from datetime import UTC, date, datetime
from enum import StrEnum
from pathlib import Path
from secrets import token_hex

import msgspec

from catchment.runtime.atomic_files import sync_folder
from catchment.runtime.clock import Clock
from pipelines.errors import CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SETS
from pipelines.training.export.annotated import write_coco, write_yolo
from pipelines.training.export.record_files import write_litdata, write_mds, write_tfrecord, write_webdataset
from pipelines.training.export.samples import ExportSource
from pipelines.training.export.tables import write_huggingface, write_lance
from pipelines.training.manifest import Manifest, encode_manifest

EXPORTS = ".exports"
_MAX_RECORD_BYTES = 64 * 1024
_MAX_RECIPIENT = 200


class ExportFormat(StrEnum):
    """What a set can be exported to."""

    WEBDATASET = "webdataset"
    HUGGINGFACE = "huggingface"
    TFRECORD = "tfrecord"
    MDS = "mds"
    LITDATA = "litdata"
    LANCE = "lance"
    COCO = "coco"
    YOLO = "yolo"


class ExportRecord(msgspec.Struct, frozen=True):
    """Which set went out, when, in which form, for whom, and until when they may keep it.

    `sha256` is of the lines `<sha256>  <path>` of all `files` files in order, as sha256sum prints them.
    """

    set: str
    version: int
    manifest_sha256: str
    format: ExportFormat
    created_ms: int
    recipient: str
    expires: date | None
    rows: int
    files: int
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class ExportOrder:
    """What to export: `recipient` and `expires` go into the record, `boxes` names the column that COCO and YOLO draw from."""

    form: ExportFormat
    recipient: str = ""
    expires: date | None = None
    boxes: str = ""

    def __post_init__(self) -> None:
        if not self.recipient.strip() or len(self.recipient) > _MAX_RECIPIENT or not self.recipient.isprintable():
            raise RefusedError(f"export: say who gets it (--recipient), in 1 to {_MAX_RECIPIENT} characters of one line")


def export_set(lake: Lake, source: ExportSource, target: Path, order: ExportOrder, clock: Clock) -> ExportRecord:
    """Write a set in another format and record it.

    Args:
        lake: of the set; keeps the record.
        source: the set.
        target: a folder that is not there yet, or is empty.
        order: format, recipient and expiry.
        clock: tells when.

    Raises:
        RefusedError: the target is in use, the expiry is past, or the format does not fit the set.
        CorruptLakeError: a payload is missing or is not the one that was captured.
        OSError: the disk refused.
    """
    now_ms = clock.now_ms()
    if order.expires is not None and order.expires < datetime.fromtimestamp(now_ms / 1000, UTC).date():
        raise RefusedError(f"export: {order.expires} is past; give a later --expires")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise RefusedError(f"{target}: is there already; export to a folder of its own")
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}")
    draft.mkdir()
    try:
        rows = _write(source, draft, order)
        files, size, digest = _listing(draft)
        sync_folder(draft)
        manifest = source.manifest
        of_manifest = hashlib.sha256(encode_manifest(manifest)).hexdigest()
        record = ExportRecord(
            *(manifest.name, manifest.version, of_manifest, order.form, now_ms, order.recipient, order.expires),
            *(rows, files, size, digest),
        )
        # Recorded first: after a crash here somebody is listed who has nothing, never the other way round.
        _keep(lake, record)
        draft.rename(target)
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise
    return record


def _keep(lake: Lake, record: ExportRecord) -> None:
    path = lake.root / SETS / record.set / EXPORTS / f"{record.version}-{record.created_ms}-{token_hex(4)}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lake.create(path, msgspec.json.format(msgspec.json.encode(record), indent=1) + b"\n")


def exports_of(lake: Lake, manifest: Manifest) -> list[ExportRecord]:
    """The exports of all versions of a set, oldest first.

    Raises:
        CorruptLakeError: a record cannot be read.
    """
    records: list[ExportRecord] = []
    for file in lake.files(f"{SETS}/{manifest.name}/{EXPORTS}"):
        path = lake.local(lake.root / file.name)
        try:
            records.append(msgspec.json.decode(path.read_bytes()[:_MAX_RECORD_BYTES], type=ExportRecord))
        except msgspec.MsgspecError as error:
            raise CorruptLakeError(f"{path}: not the record of an export ({error}); restore it from a backup") from error
    return sorted(records, key=lambda record: record.created_ms)


def _write(source: ExportSource, folder: Path, order: ExportOrder) -> int:
    if order.form is ExportFormat.COCO:
        return write_coco(source, folder, order.boxes)
    if order.form is ExportFormat.YOLO:
        return write_yolo(source, folder, order.boxes)
    write = {
        ExportFormat.WEBDATASET: write_webdataset,
        ExportFormat.HUGGINGFACE: write_huggingface,
        ExportFormat.TFRECORD: write_tfrecord,
        ExportFormat.MDS: write_mds,
        ExportFormat.LITDATA: write_litdata,
        ExportFormat.LANCE: write_lance,
    }[order.form]
    return write(source, folder)


def _listing(folder: Path) -> tuple[int, int, str]:
    """Number, bytes and digest of the files of a folder."""
    whole, size = hashlib.sha256(), 0
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in paths:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        size += path.stat().st_size
        whole.update(f"{digest}  {path.relative_to(folder)}\n".encode())
    return len(paths), size, whole.hexdigest()
