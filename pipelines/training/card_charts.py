"""Charts of a card as SVG without scripts: bars of classes by split, coverage of devices over time, histograms of numbers."""

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from catchment.runtime.plain import html_text
from pipelines.training.manifest import Manifest, set_file_path

MAX_CLASSES = 40
MAX_DEVICES = 30
MAX_HISTOGRAMS = 12
_SLOTS = 60
_BINS = 32
_MAX_ROWS = 2_000_000
_WIDE, _HIGH = 520, 18
_COLOURS = ("#3566b8", "#d9822b", "#3d9970", "#8e5ea2", "#b5483a", "#6b7785")
_NO_NUMBERS = frozenset({"epoch", "seq", "run", "payload_row", "window_rows"})
Float64s = npt.NDArray[np.float64]


def class_bars(manifest: Manifest) -> str:
    """A bar for each class, a part of it for each split; the number of rows next to it. Classes that a split lacks say so."""
    splits = tuple(manifest.split_rows())
    counts: dict[str, dict[str, int]] = {}
    for count in manifest.coverage:
        counts.setdefault(count.name, {})[count.split] = count.rows
    if not counts:
        return ""
    largest = max(sum(rows.values()) for rows in counts.values()) or 1
    chosen = sorted(counts.items(), key=lambda each: -sum(each[1].values()))
    lines = [_legend(splits)]
    for name, rows in chosen[:MAX_CLASSES]:
        parts, at = [], 0.0
        for number, split in enumerate(splits):
            width = _WIDE * rows.get(split, 0) / largest
            title = html_text(f"{split}: {rows.get(split, 0):,}")
            parts.append(_rect(at, width, _colour(number), title))
            at += width
        lacking = ", ".join(split for split in splits if not rows.get(split))
        remark = f"{sum(rows.values()):,}" + (f" (none in {lacking})" if lacking else "")
        lines.append(_line(name, "".join(parts), remark))
    more = f"<p>{len(chosen) - MAX_CLASSES:,} more classes in the manifest.</p>" if len(chosen) > MAX_CLASSES else ""
    return f"<h2>Classes</h2><table class=chart>{''.join(lines)}</table>{more}"


def data_charts(manifest: Manifest, folder: Path) -> str:
    """Coverage of time by device, and histograms of the number columns. Of very large sets the first rows of each split."""
    if not manifest.shards:
        return ""
    rows = _rows(manifest, folder)
    remark = "" if len(rows) == manifest.rows else f"<p>Drawn from {len(rows):,} of {manifest.rows:,} rows.</p>"
    return _coverage(rows) + _histograms(rows) + remark if len(rows) else ""


def _rows(manifest: Manifest, folder: Path) -> pa.Table:
    wanted = [column.name for column in manifest.columns if column.name in {"device", "event_time"} or _is_number(column.type)]
    share = max(1, _MAX_ROWS // max(1, len(manifest.split_rows())))
    tables = []
    for split in manifest.split_rows():
        paths = [str(set_file_path(folder, shard.path)) for shard in manifest.shards_of(split)]
        tables.append(ds.dataset(paths, format="parquet").head(share, columns=wanted))
    return pa.concat_tables(tables, promote_options="permissive")


def _coverage(rows: pa.Table) -> str:
    """A line for each device: the darker a slot of time, the more rows fall into it."""
    if not {"device", "event_time"} <= set(rows.schema.names):
        return ""
    timed = rows.filter(pc.is_valid(rows.column("event_time")))
    if not len(timed):
        return ""
    times = np.asarray(pc.cast(timed.column("event_time").cast(pa.timestamp("us", "UTC")), pa.int64()).to_numpy(), np.float64)
    devices = timed.column("device").combine_chunks().dictionary_encode()
    codes = np.asarray(pc.fill_null(devices.indices, len(devices.dictionary)).to_numpy(zero_copy_only=False), np.int64)
    first, last = float(times.min()), float(times.max())
    slots = np.minimum((times - first) / max(last - first, 1.0) * _SLOTS, _SLOTS - 1).astype(np.int64)
    names = [*devices.dictionary.to_pylist(), "(none)"]
    table = np.bincount(codes * _SLOTS + slots, minlength=len(names) * _SLOTS).reshape(len(names), _SLOTS)
    order = [number for number in np.argsort(-table.sum(axis=1), kind="stable").tolist() if table[number].any()]
    lines = [
        _line(names[number], _slots(table[number], int(table.max())), f"{table[number].sum():,}")
        for number in order[:MAX_DEVICES]
    ]
    more = f"<p>{len(order) - MAX_DEVICES:,} more devices.</p>" if len(order) > MAX_DEVICES else ""
    span = f"<p>{_time(first)} to {_time(last)} UTC, {len(order):,} devices; the darker, the more rows.</p>"
    return f"<h2>Time and devices</h2>{span}<table class=chart>{''.join(lines)}</table>{more}"


def _slots(counts: npt.NDArray[np.int64], most: int) -> str:
    wide = _WIDE / _SLOTS
    return "".join(
        _rect(at * wide, wide, _COLOURS[0], f"{counts[at]:,}", 0.15 + 0.85 * float(counts[at]) / most)
        for at in np.flatnonzero(counts).tolist()
    )


def _histograms(rows: pa.Table) -> str:
    drawn = [chart for field in rows.schema if (chart := _histogram(field.name, rows.column(field.name)))]
    more = f"<p>{len(drawn) - MAX_HISTOGRAMS:,} more number columns.</p>" if len(drawn) > MAX_HISTOGRAMS else ""
    return f"<h2>Numbers</h2><div class=grid>{''.join(drawn[:MAX_HISTOGRAMS])}</div>{more}" if drawn else ""


def _histogram(name: str, column: pa.ChunkedArray) -> str:
    """The distribution between the smallest and the largest value, with what is null or not finite counted in words."""
    if name in _NO_NUMBERS or not _is_number(str(column.type)):
        return ""
    numbers = np.asarray(pc.cast(column, pa.float64(), safe=False).to_numpy(), np.float64)
    finite = numbers[np.isfinite(numbers)]
    words = f"{len(numbers) - len(finite):,} null or not finite" if len(finite) < len(numbers) else ""
    if not len(finite):
        return f"<figure><figcaption><b>{html_text(name)}</b> no values</figcaption></figure>"
    low, high = float(finite.min()), float(finite.max())
    # Halves: the distance of the largest numbers is none itself.
    scale = (high / 2 - low / 2) or 1.0
    counts = np.bincount(np.minimum((finite / 2 - low / 2) / scale * _BINS, _BINS - 1).astype(np.int64), minlength=_BINS)
    bars = "".join(_bars(counts))
    summary = f"{low:.4g} to {high:.4g}, median {float(np.median(finite)):.4g}{', ' if words else ''}{words}"
    return (
        f'<figure><svg viewBox="0 0 160 48" role=img>{bars}</svg>'
        f"<figcaption><b>{html_text(name)}</b> {html_text(summary)}</figcaption></figure>"
    )


def _bars(counts: npt.NDArray[np.int64]) -> Iterator[str]:
    wide, most = 160 / _BINS, int(counts.max())
    for at, count in enumerate(counts.tolist()):
        if count:
            tall = max(1.0, 46 * count / most)
            place = f'x="{at * wide:.1f}" y="{48 - tall:.1f}" width="{wide - 0.6:.1f}" height="{tall:.1f}"'
            yield f'<rect {place} fill="{_COLOURS[0]}"/>'


def _legend(splits: tuple[str, ...]) -> str:
    marks = "".join(
        f'<span class=key style="background:{_colour(number)}"></span>{html_text(split)} ' for number, split in enumerate(splits)
    )
    return f"<tr><td></td><td>{marks}</td><td></td></tr>"


def _line(name: Any, inner: str, remark: str) -> str:
    svg = f'<svg viewBox="0 0 {_WIDE} {_HIGH}" preserveAspectRatio="none" role=img>{inner}</svg>'
    return f"<tr><td>{html_text(str(name))}</td><td class=bar>{svg}</td><td class=n>{html_text(remark)}</td></tr>"


def _rect(at: float, width: float, colour: str, title: str, opacity: float = 1.0) -> str:
    seen = f' fill-opacity="{opacity:.2f}"' if opacity < 1 else ""
    return f'<rect x="{at:.1f}" y="0" width="{width:.1f}" height="{_HIGH}" fill="{colour}"{seen}><title>{title}</title></rect>'


def _colour(number: int) -> str:
    return _COLOURS[number % len(_COLOURS)]


def _is_number(kind: str) -> bool:
    return kind.startswith(("int", "uint", "float", "double"))


def _time(us: float) -> str:
    return datetime.fromtimestamp(us / 1e6, UTC).strftime("%Y-%m-%d %H:%M:%S")
