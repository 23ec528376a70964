"""Formats of columns: Hugging Face's Parquet with its README card, Croissant's description of it, Lance."""

import hashlib
import json
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.errors import RefusedError
from pipelines.training.export.samples import ExportSource, finish_file
from schemas.picture_format import HEAD_BYTES, picture_format

_SHARD_BYTES = 256 * 1024 * 1024
_GROUP_ROWS = 512
# The terms of the format, as its specification lists them.
_CONTEXT = {
    "@language": "en",
    "@vocab": "https://schema.org/",
    "citeAs": "cr:citeAs",
    "column": "cr:column",
    "conformsTo": "dct:conformsTo",
    "cr": "http://mlcommons.org/croissant/",
    "rai": "http://mlcommons.org/croissant/RAI/",
    "data": {"@id": "cr:data", "@type": "@json"},
    "dataType": {"@id": "cr:dataType", "@type": "@vocab"},
    "dct": "http://purl.org/dc/terms/",
    "equivalentProperty": "cr:equivalentProperty",
    "examples": {"@id": "cr:examples", "@type": "@json"},
    **{
        name: f"cr:{name}"
        for name in (
            *("extract", "field", "fileProperty", "fileObject", "fileSet", "format", "includes", "isLiveDataset", "jsonPath"),
            *("key", "md5", "parentField", "path", "recordSet", "references", "regex", "repeated", "replace", "samplingRate"),
            *("separator", "source", "subField", "transform"),
        )
    },
    "sc": "https://schema.org/",
}
_CROISSANT_TYPES = (
    ("string", "sc:Text"),
    ("timestamp", "sc:DateTime"),
    ("int", "sc:Integer"),
    ("bool", "sc:Boolean"),
    ("float", "sc:Float"),
    ("double", "sc:Float"),
)


def write_huggingface(source: ExportSource, folder: Path) -> int:
    """Write `data/<split>-00000.parquet`, README.md and croissant.json. Pictures become the feature Image. Returns the rows."""
    source.refuse_arrays("huggingface")
    is_image = source.manifest.has_payload and _is_picture(source)
    data = folder / "data"
    data.mkdir()
    rows = 0
    for split in source.splits:
        for number, tables in enumerate(_by_size(source.tables(split))):
            whole = pa.concat_tables(tables)
            path = data / f"{split}-{number:05d}.parquet"
            pq.write_table(_with_images(whole) if is_image else whole, path, compression="snappy", row_group_size=_GROUP_ROWS)
            finish_file(path)
            rows += len(whole)
    for name, text in (("README.md", _readme(source)), ("croissant.json", _croissant(source, folder))):
        (folder / name).write_text(text)
        finish_file(folder / name)
    return rows


def write_lance(source: ExportSource, folder: Path) -> int:
    """Write `<split>.lance`. Returns the rows.

    Raises:
        RefusedError: Lance is not installed.
    """
    source.refuse_arrays("lance")
    try:
        import lance  # noqa: PLC0415 - not among the dependencies
    except ImportError as error:
        raise RefusedError("lance: the package is not installed; python -m pip install pylance") from error
    rows = 0
    for split in source.splits:
        tables = source.tables(split)
        first = next(tables)
        batches = (batch for table in _chained(first, tables) for batch in table.to_batches())
        reader = pa.RecordBatchReader.from_batches(first.schema, batches)
        rows += lance.write_dataset(reader, str(folder / f"{split}.lance")).count_rows()
    return rows


def _chained(first: pa.Table, others: Iterator[pa.Table]) -> Iterator[pa.Table]:
    yield first
    yield from others


def _by_size(tables: Iterator[pa.Table]) -> Iterator[list[pa.Table]]:
    held: list[pa.Table] = []
    size = 0
    for table in tables:
        if held and size + table.nbytes > _SHARD_BYTES:
            yield held
            held, size = [], 0
        held.append(table)
        size += table.nbytes
    if held:
        yield held


def _is_picture(source: ExportSource) -> bool:
    first = next(source.samples(source.splits[0]))
    return picture_format((first.payload or b"")[:HEAD_BYTES]) is not None


def _with_images(rows: pa.Table) -> pa.Table:
    """The payload as the struct that `datasets` takes for a picture, and the schema's word that it is one."""
    at = rows.schema.get_field_index("payload")
    bodies = rows.column(at).combine_chunks()
    bodies = bodies if isinstance(bodies, pa.Array) else pa.concat_arrays(bodies.chunks)
    images = pa.StructArray.from_arrays([bodies, pa.nulls(len(rows), pa.string())], ["bytes", "path"])
    with_images = rows.set_column(at, "image", images)
    features = {"image": {"_type": "Image"}}
    return with_images.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": _features(rows, features)}})})


def _features(rows: pa.Table, known: dict[str, Any]) -> dict[str, Any]:
    """What `datasets` calls the types of the columns; the metadata counts only if it names all of them."""
    features: dict[str, Any] = {}
    for field in rows.schema:
        if field.name == "payload":
            features["image"] = known["image"]
        elif pa.types.is_list(field.type):
            features[field.name] = {"feature": {"dtype": _dtype(field.type.value_type), "_type": "Value"}, "_type": "List"}
        else:
            features[field.name] = {"dtype": _dtype(field.type), "_type": "Value"}
    return features


def _dtype(kind: pa.DataType) -> str:
    text = str(kind)
    return {"double": "float64", "float": "float32", "halffloat": "float16"}.get(text, text)


def _readme(source: ExportSource) -> str:
    manifest = source.manifest
    rows = manifest.split_rows()
    configs = "".join(f"  - split: {split}\n    path: data/{split}-*.parquet\n" for split in source.splits)
    splits = "".join(f"| {split} | {rows[split]:,} |\n" for split in source.splits)
    sources = "".join(f"- {each.stream} at version {each.delta_version}: {each.rows:,} rows\n" for each in manifest.sources)
    left_out = "".join(f"- {part.rows:,} rows: {part.reason}\n" for part in manifest.left_out) or "- nothing\n"
    return (
        f"---\npretty_name: {json.dumps(f'{manifest.name} {manifest.version}')}\nconfigs:\n- config_name: default\n"
        f"  data_files:\n{configs}---\n\n# {manifest.name} {manifest.version}\n\n"
        f"Built by catchment {manifest.code_version} on {_date(manifest.created_ms)}, where `{manifest.where or 'all rows'}`.\n\n"
        f"| split | samples |\n|---|---|\n{splits}\n"
        f"Rows of equal {', '.join(manifest.split.group)} lie in one split (seed {manifest.seed}).\n\n"
        f"## Where it comes from\n\n{sources}\n## What was left out\n\n{left_out}\n"
        f"## Policies\n\n{', '.join(manifest.policies) or 'none'}\n"
    )


def _croissant(source: ExportSource, folder: Path) -> str:
    """Croissant 1.0: each file with its sha256, and its columns that are not nested as a record set."""
    manifest = source.manifest
    paths = sorted((folder / "data").iterdir())
    document = {
        "@context": _CONTEXT,
        "@type": "sc:Dataset",
        "conformsTo": "http://mlcommons.org/croissant/1.0",
        "name": f"{manifest.name}-{manifest.version}",
        "description": f"Training set {manifest.name} {manifest.version}, where {manifest.where or 'all rows'}",
        "version": f"{manifest.version}.0.0",
        "datePublished": _date(manifest.created_ms),
        "citeAs": f"{manifest.name} {manifest.version}, built by catchment {manifest.code_version}",
        "distribution": [_file_object(path) for path in paths],
        "recordSet": [{"@type": "cr:RecordSet", "@id": path.stem, "name": path.stem, "field": _fields(path)} for path in paths],
    }
    return json.dumps(document, indent=1) + "\n"


def _file_object(path: Path) -> dict[str, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {
        "@type": "cr:FileObject",
        "@id": path.name,
        "name": path.name,
        "contentUrl": f"data/{path.name}",
        "contentSize": f"{path.stat().st_size} B",
        "encodingFormat": "application/x-parquet",
        "sha256": digest,
    }


def _fields(path: Path) -> list[dict[str, Any]]:
    fields = []
    for column in pq.read_schema(path):
        kind = next((name for start, name in _CROISSANT_TYPES if str(column.type).startswith(start)), None)
        if kind is not None:
            fields.append({
                "@type": "cr:Field",
                "@id": f"{path.stem}/{column.name}",
                "name": column.name,
                "dataType": kind,
                "source": {"fileObject": {"@id": path.name}, "extract": {"column": column.name}},
            })  # fmt: skip
    return fields


def _date(created_ms: int) -> str:
    return datetime.fromtimestamp(created_ms / 1000, UTC).strftime("%Y-%m-%d")
