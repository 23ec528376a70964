"""Formats of one record after the other: WebDataset's tar files, TFRecord files of tf.train.Example, MDS of Mosaic, LitData."""

import io
import itertools
import json
import struct
import tarfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import google_crc32c
import numpy as np

from pipelines.errors import RefusedError
from pipelines.training.export.samples import ExportSample, ExportSource, columns_json, finish_file

SHARD_BYTES = 64 * 1024 * 1024
_MAX_RECORD_BYTES = 1 << 30
_TAR_BLOCK = 512
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
# Of each MDS encoding the bytes of a value, None where they differ.
_MDS_SIZES = {"int": 8, "float64": 8, "bytes": None, "str": None, "json": None}

# The leaves of a sample of LitData, and how each is written.
_LITDATA = {"payload": "bytes", "device": "str", "epoch": "int", "seq": "int", "columns": "str"}


def write_webdataset(source: ExportSource, folder: Path) -> int:
    """Write `<split>-000000.tar`: of each sample its payload or arrays (.npy), and its columns as JSON. Returns the rows."""
    return sum(
        rows
        for split in source.splits
        for _, rows in _shards(folder, split, "tar", map(_tar_record, source.samples(split)), _tar_file)
    )


def write_tfrecord(source: ExportSource, folder: Path) -> int:
    """Write `<split>-000000.tfrecord`: records of tf.train.Example, a feature for each column. Returns the rows.

    A float is 32 bits wide there; a time is an integer of microseconds; a null is no feature.
    """
    source.refuse_arrays("tfrecord")
    return sum(
        rows
        for split in source.splits
        for _, rows in _shards(folder, split, "tfrecord", map(_example_record, source.samples(split)), b"".join)
    )


def write_mds(source: ExportSource, folder: Path) -> int:
    """Write `<split>/index.json` and its shards, as Mosaic's StreamingDataset reads them. Returns the rows."""
    source.refuse_arrays("mds")
    encodings = dict(sorted(_mds_encodings(source).items()))
    header = {
        "column_encodings": list(encodings.values()),
        "column_names": list(encodings),
        "column_sizes": [_MDS_SIZES[encoding] for encoding in encodings.values()],
        "compression": None,
        "format": "mds",
        "hashes": [],
        "size_limit": SHARD_BYTES,
        "version": 2,
    }
    head = json.dumps(header, sort_keys=True).encode()
    total = 0
    for split in source.splits:
        home = folder / split
        home.mkdir()
        records = (_mds_record(sample, encodings) for sample in source.samples(split))
        shards = []
        for path, rows in _shards(home, "shard", "mds", records, lambda part: _mds_file(part, head)):
            raw = {"basename": path.name, "bytes": path.stat().st_size, "hashes": {}}
            shards.append({**header, "raw_data": raw, "samples": rows, "zip_data": None})
            total += rows
        index = home / "index.json"
        index.write_text(json.dumps({"shards": shards, "version": 2}, sort_keys=True))
        finish_file(index)
    return total


def write_litdata(source: ExportSource, folder: Path) -> int:
    """Write `<split>/index.json` and its chunks, as LitData's StreamingDataset reads them. Returns the rows.

    A sample is a dict of `payload`, `device`, `epoch`, `seq`, and all columns as JSON in `columns`.
    """
    source.refuse_without_payload("litdata")
    total = 0
    for split in source.splits:
        home = folder / split
        home.mkdir()
        records = map(_litdata_record, source.samples(split))
        chunks = []
        for path, rows in _shards(home, "chunk-0", "bin", records, _litdata_file):
            chunks.append({"chunk_bytes": path.stat().st_size, "chunk_size": rows, "dim": None, "filename": path.name})
            total += rows
        leaf: dict[str, Any] = {"type": None, "context": None, "children_spec": []}
        spec = {"type": "builtins.dict", "context": json.dumps(list(_LITDATA)), "children_spec": [leaf] * len(_LITDATA)}
        config = {
            "chunk_bytes": SHARD_BYTES,
            "chunk_size": None,
            "compression": None,
            "data_format": list(_LITDATA.values()),
            "data_spec": json.dumps([1, spec]),
            "encryption": None,
            "item_loader": "PyTreeLoader",
        }
        index = home / "index.json"
        index.write_text(json.dumps({"chunks": chunks, "config": config}))
        finish_file(index)
    return total


def _shards(
    folder: Path, stem: str, suffix: str, records: Iterator[bytes], assemble: Callable[[list[bytes]], bytes]
) -> Iterator[tuple[Path, int]]:
    """Write records into files of at most about SHARD_BYTES; gives each file and its records."""
    numbers = itertools.count()
    held: list[bytes] = []
    size = 0

    def written() -> tuple[Path, int]:
        path = folder / f"{stem}-{next(numbers):06d}.{suffix}"
        path.write_bytes(assemble(held))
        finish_file(path)
        return path, len(held)

    for record in records:
        if len(record) > _MAX_RECORD_BYTES:
            raise RefusedError(f"{suffix}: a sample of {len(record):,} bytes is above {_MAX_RECORD_BYTES:,}; export its chips")
        if held and size + len(record) > SHARD_BYTES:
            yield written()
            held, size = [], 0
        held.append(record)
        size += len(record)
    if held:
        yield written()


def _tar_record(sample: ExportSample) -> bytes:
    members = {"json": columns_json(sample.columns)}
    if sample.payload is not None:
        members[sample.extension] = sample.payload
    for name, array in sample.arrays.items():
        body = io.BytesIO()
        np.save(body, array, allow_pickle=False)
        members[f"{name}.npy"] = body.getvalue()
    parts: list[bytes] = []
    for suffix, content in sorted(members.items()):
        # No time, no owner: the same set gives the same bytes.
        entry = tarfile.TarInfo(f"{sample.number:09d}.{suffix}")
        entry.size, entry.mode = len(content), 0o644
        parts += (entry.tobuf(tarfile.USTAR_FORMAT), content, bytes(-len(content) % _TAR_BLOCK))
    return b"".join(parts)


def _tar_file(records: list[bytes]) -> bytes:
    return b"".join((*records, bytes(2 * _TAR_BLOCK)))


def _example_record(sample: ExportSample) -> bytes:
    columns = sample.columns if sample.payload is None else {**sample.columns, "payload": sample.payload}
    features = b"".join(
        # Entries of the map `feature`: name and value, each behind its field number.
        _field(1, _field(1, name.encode()) + _field(2, feature))
        for name, value in sorted(columns.items())
        if (feature := _feature(value)) is not None
    )
    body = _field(1, features)
    length = struct.pack("<Q", len(body))
    return length + _masked_crc(length) + body + _masked_crc(body)


def _feature(value: Any) -> bytes | None:
    """A tf.train.Feature: bytes_list (field 1), float_list (2) or int64_list (3); None for a null."""
    values = value if isinstance(value, list) else [value]
    if value is None or any(item is None for item in values):
        return None if value is None else _field(1, _field(1, columns_json({"value": value})))
    if all(isinstance(item, datetime) for item in values):
        values = [round((item - _EPOCH).total_seconds() * 1e6) for item in values]
    if values and all(isinstance(item, int) for item in values):
        return _field(3, _field(1, b"".join(_varint(int(item) & (1 << 64) - 1) for item in values)))
    if values and all(isinstance(item, float) for item in values):
        return _field(2, _field(1, np.array(values, np.float64).astype("<f4").tobytes()))
    if all(isinstance(item, bytes | str) for item in values):
        return _field(1, b"".join(_field(1, item.encode() if isinstance(item, str) else item) for item in values))
    return _field(1, _field(1, columns_json({"value": value})))


def _field(number: int, body: bytes) -> bytes:
    """A field of a protocol buffer that holds bytes."""
    return _varint(number << 3 | 2) + _varint(len(body)) + body


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _masked_crc(body: bytes) -> bytes:
    crc = google_crc32c.value(body)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF)


def _mds_encodings(source: ExportSource) -> dict[str, str]:
    """Of each column its MDS encoding. MDS has no nulls: what may hold one goes as JSON."""
    kinds = {column.name: column.type for column in source.manifest.columns}
    encodings = {name: "bytes" if kind.endswith("binary") else "json" for name, kind in kinds.items()}
    encodings |= {name: "int" for name in ("epoch", "seq") if name in kinds}
    encodings |= {name: "str" for name in ("stream", "device") if name in kinds}
    return encodings | ({"payload": "bytes"} if source.manifest.has_payload else {})


def _mds_record(sample: ExportSample, encodings: dict[str, str]) -> bytes:
    columns = {**sample.columns, "payload": sample.payload}
    sizes: list[int] = []
    bodies: list[bytes] = []
    for name, encoding in encodings.items():
        body = _mds_value(columns[name], encoding)
        if _MDS_SIZES[encoding] is None:
            sizes.append(len(body))
        bodies.append(body)
    return np.array(sizes, "<u4").tobytes() + b"".join(bodies)


def _mds_value(value: Any, encoding: str) -> bytes:
    if encoding == "int":
        return struct.pack("<q", value)
    if encoding == "json":
        return json.dumps(json.loads(columns_json({"value": value}))["value"]).encode()
    body: bytes = value.encode() if isinstance(value, str) else value or b""
    return body


def _mds_file(records: list[bytes], head: bytes) -> bytes:
    """The number of samples, where each begins and the last ends, the description, the samples."""
    begin = 4 + 4 * (len(records) + 1) + len(head)
    offsets = begin + np.concatenate(([0], np.cumsum([len(record) for record in records])))
    return struct.pack("<I", len(records)) + offsets.astype("<u4").tobytes() + head + b"".join(records)


def _litdata_record(sample: ExportSample) -> bytes:
    """Sizes of the leaves, then the leaves."""
    columns = sample.columns
    leaves = (
        sample.payload or b"",
        columns["device"].encode(),
        struct.pack("<q", columns["epoch"]),
        struct.pack("<q", columns["seq"]),
        columns_json(columns),
    )
    return np.array([len(leaf) for leaf in leaves], "<u4").tobytes() + b"".join(leaves)


def _litdata_file(records: list[bytes]) -> bytes:
    """The number of samples, where each begins and the last ends, the samples."""
    begin = 4 + 4 * (len(records) + 1)
    offsets = begin + np.concatenate(([0], np.cumsum([len(record) for record in records])))
    return struct.pack("<I", len(records)) + offsets.astype("<u4").tobytes() + b"".join(records)
