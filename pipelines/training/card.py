"""The card of a training set: one small page that a person reads before they trust the set."""

import base64
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyvips

from catchment.runtime.plain import html_text
from pipelines.errors import UnreadableImageError
from pipelines.imaging.picture_loader import shrink
from pipelines.lake.payload import pread_exactly
from pipelines.training.card_charts import class_bars, data_charts
from pipelines.training.manifest import Manifest, map_set_file, open_set_file

_THUMBNAILS = 24
_THUMBNAIL_PX = 128
_MAX_SOURCE_BYTES = 8 * 1024 * 1024
_MAX_SOURCE_PIXELS = 50_000_000
_IMAGE_HEADS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")
_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:52rem;margin:2rem auto;padding:0 1rem;color:#1b2430}"
    "table{border-collapse:collapse;margin:.5rem 0}"
    "td,th{text-align:left;padding:.2rem .9rem .2rem 0;border-bottom:1px solid #dde3ea}"
    "table.chart td{border:0;padding:.1rem .6rem .1rem 0}table.chart svg{width:100%;height:1rem;display:block}"
    "td.bar{width:60%}.key{display:inline-block;width:.8rem;height:.8rem;margin:0 .3rem 0 .8rem;border-radius:2px}"
    ".grid{display:grid;grid-template-columns:repeat(auto-fill,minmax(11rem,1fr));gap:1rem}"
    "figure{margin:0;overflow-wrap:anywhere}figure svg{width:100%;height:3.4rem;background:#f2f5f8}"
    "figcaption{font-size:12px}"
    "td.n{font-variant-numeric:tabular-nums}"
    "img{margin:2px;border-radius:4px}code{background:#f2f5f8;padding:0 .3rem}"
)


def render_card(manifest: Manifest, folder: Path) -> str:
    """The page as HTML without scripts; everything that came from outside is escaped."""
    built = datetime.fromtimestamp(manifest.created_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M UTC")
    title = html_text(f"{manifest.name} {manifest.version}")
    facts = [
        ("built", f"{built} by catchment {manifest.code_version}"),
        ("rows", f"{manifest.rows:,}"),
        ("bytes", f"{manifest.bytes:,}"),
        ("where", manifest.where or "(all rows)"),
        ("split by", f"{', '.join(manifest.split.group)}, seed {manifest.seed}"),
        *(
            ("from", f"{source.stream} at Delta version {source.delta_version}: {source.rows:,} rows")
            for source in manifest.sources
        ),
        *(("left out", f"{part.rows:,} rows: {part.reason}") for part in manifest.left_out),
        *(("note", note) for note in manifest.notes),
        ("policies", ", ".join(manifest.policies) or "none"),
    ]
    splits = [(name, f"{rows:,}", f"{rows / max(manifest.rows, 1):.1%}") for name, rows in manifest.split_rows().items()]
    tags = [(count.tag, count.split, f"{count.rows:,}") for count in manifest.tags]
    columns = [(column.name, column.type) for column in manifest.columns]
    pictures = "".join(_thumbnails(manifest, folder)) if manifest.has_payload else ""
    return (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{title}</title><style>{_STYLE}</style>"
        f"<h1>{title}</h1>{_table(('', ''), facts)}{pictures}"
        f"<h2>Splits</h2>{_table(('split', 'rows', 'share'), splits)}"
        f"{class_bars(manifest)}{data_charts(manifest, folder)}"
        f"<h2>Tags</h2>{_table(('tag', 'split', 'rows'), tags) if tags else '<p>No tags.</p>'}"
        f"<h2>Columns</h2>{_table(('column', 'type'), columns)}</html>\n"
    )


def _table(head: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    top = "".join(f"<th>{html_text(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{html_text(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><tr>{top}</tr>{body}</table>"


def _thumbnails(manifest: Manifest, folder: Path) -> Iterable[str]:
    """The first few pictures of the first shard; payloads that are none, or too large, are skipped."""
    index, shard = manifest.indexes[0].path, manifest.shards[0]
    rows = pa.ipc.open_file(map_set_file(folder, index)).read_all().slice(0, min(_THUMBNAILS, shard.rows))
    places = list(zip(rows.column("payload_offset").to_pylist(), rows.column("payload_length").to_pylist(), strict=True))
    with open_set_file(folder, shard.path) as file:
        for offset, length in places:
            body = pread_exactly(file.fileno(), offset, length) if length <= _MAX_SOURCE_BYTES else None
            if body is not None and body.startswith(_IMAGE_HEADS) and (small := _shrunk(body)):
                yield f'<img alt="sample" src="data:image/jpeg;base64,{base64.b64encode(small).decode()}">'


def _shrunk(body: bytes) -> bytes | None:
    """A small JPEG, or None for a picture that cannot be decoded: a card shows what it can, the set is the same without."""
    try:
        small = shrink(body, _THUMBNAIL_PX, _THUMBNAIL_PX, _MAX_SOURCE_PIXELS)
        return bytes(small.flatten().jpegsave_buffer(Q=80) if small.hasalpha() else small.jpegsave_buffer(Q=80))
    except (UnreadableImageError, pyvips.Error):
        return None
