"""Labels in and out: a labelling tool's files become rows of a task's table, samples and their labels become its files."""

import hashlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import pyarrow as pa

from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.drawn import Drawn, ForeignFile, LabelKind, LabelTask, sample_stem
from pipelines.labels.formats import coco, csv_rows, cvat, datumaro, geojson, label_studio, labelme, masks, voc
from pipelines.labels.formats.yolo import DIALECTS
from pipelines.labels.matching import LabelOrigin, Matched, match_labels
from pipelines.labels.resolve import current_labels
from pipelines.labels.table import KEY, append_labels
from pipelines.lake.lake import Lake

_EMPTY = 'pictures without labels, not taken for "nothing here" (--empty-is-nothing)'
_SHOWN = 10
_BLOCK_BYTES = 4 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class LabelFormat:
    """How a format is read and written; `suffix` of its files; "" where an export is a folder."""

    read: Callable[[Path], ForeignFile]
    write: Callable[[Path, list[LabelTask]], Counter[str]]
    suffix: str


FORMATS = {
    "coco": LabelFormat(coco.read, coco.write, ".json"),
    "csv": LabelFormat(csv_rows.read, csv_rows.write, ".csv"),
    "cvat": LabelFormat(cvat.read, cvat.write, ".xml"),
    "datumaro": LabelFormat(datumaro.read, datumaro.write, ".json"),
    "geojson": LabelFormat(geojson.read, geojson.write, ""),
    "label-studio": LabelFormat(label_studio.read, label_studio.write, ".json"),
    "labelme": LabelFormat(labelme.read, labelme.write, ""),
    "masks": LabelFormat(masks.read, masks.write, ""),
    "voc": LabelFormat(voc.read, voc.write, ""),
    **{name: LabelFormat(read, write, "") for name, (read, write) in DIALECTS.items()},
}


class LabelImport(msgspec.Struct, frozen=True):
    """What an import did. `losses`: what the file holds and the table does not get, with counts."""

    labels: int
    new: int
    by_id: int
    by_sha256: int
    by_name: int
    unmatched: tuple[str, ...]
    ambiguous: tuple[str, ...]
    losses: dict[str, int]


def format_of(name: str) -> LabelFormat:
    """A format by its name.

    Raises:
        NotFoundError: there is none.
    """
    if name not in FORMATS:
        raise NotFoundError(f"no label format {name[:40]!r}; there are {', '.join(FORMATS)}")
    return FORMATS[name]


def import_labels(
    lake: Lake,
    path: Path,
    kind: str,
    samples: pa.Table,
    origin: LabelOrigin,
    *,
    is_partial: bool = False,
    empty_is_nothing: bool = False,
) -> LabelImport:
    """Append the labels of a file or folder to the table of a task.

    Args:
        lake: the lake.
        path: the file or folder.
        kind: its format.
        samples: the samples that the labels may be about.
        origin: task, author and role; the digests of the files are put in here.
        is_partial: whether labels without a sample are left out instead of refused.
        empty_is_nothing: whether a picture without labels was looked at and there is nothing.

    Raises:
        NotFoundError: no such file or format.
        RefusedError: the file is not of the format, or an image has no sample or several.
        ConflictError: others kept winning.
    """
    found = format_of(kind).read(path)
    if empty_is_nothing:
        found.labels += found.empty
    elif found.empty:
        found.losses[_EMPTY] += len(found.empty)
    digests = {source: _digest_of(Path(source) if source else path) for source in {label.source for label in found.labels}}
    matched = match_labels(found, samples, replace(origin, digests=digests))
    if (matched.unmatched or matched.ambiguous) and not is_partial:
        raise RefusedError(f"{path}: {_strangers(matched)}; import the others alone (--partial), or name more streams")
    new = append_labels(lake, origin.task, matched.rows)
    return LabelImport(
        len(matched.rows), new, matched.by_id, matched.by_sha256, matched.by_name, matched.unmatched, matched.ambiguous,
        matched.losses,
    )  # fmt: skip


def label_tasks(samples: pa.Table, labels: pa.Table) -> list[LabelTask]:
    """Samples with their current labels, for a tool: what was superseded or rejected stays behind."""
    current = current_labels(labels).sort(*KEY, "made_at", "label_id")
    of_sample: dict[str, list[Drawn]] = {}
    for row in current.iter_rows(named=True):
        sample = "/".join(str(row[name]) for name in KEY)
        attributes = msgspec.json.decode(row["attributes"]) if row["attributes"] else {}
        of_sample.setdefault(sample, []).append(
            Drawn(
                "", LabelKind(row["kind"]), row["value"], tuple(row["geometry"]), sample=sample, author=row["author"],
                attributes=attributes, made_us=int(row["made_at"].timestamp() * 1_000_000 + 0.5),
            )
        )  # fmt: skip
    return [_task(row, of_sample) for row in samples.to_pylist()]


def _digest_of(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as body:
        while block := body.read(_BLOCK_BYTES):
            digest.update(block)
    return digest.hexdigest()


def _task(row: dict[str, object], of_sample: dict[str, list[Drawn]]) -> LabelTask:
    sample = "/".join(str(row[name]) for name in KEY)
    ending = str(row.get("file_name") or "").rsplit(".", 1)
    suffix = f".{ending[1].lower()}" if len(ending) == 2 and ending[1].isalnum() else ".jpg"
    sizes = [int(str(row.get(name) or 0)) for name in ("width", "height")]
    digest = str(row.get("payload_sha256") or "")
    return LabelTask(sample, digest, f"{sample_stem(sample)}{suffix}", sizes[0], sizes[1], tuple(of_sample.get(sample, ())))


def _strangers(matched: Matched) -> str:
    parts = [
        f"{len(names):,} images have {what}: {', '.join(names[:_SHOWN])}"
        for names, what in ((matched.unmatched, "no sample"), (matched.ambiguous, "several samples by that name"))
        if names
    ]
    return "; ".join(parts)
