"""Commit a cut: chip tables, quarantine, and last the word that it is done. The next try ends what a crash interrupts."""

import shutil
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from pipelines.imaging.store import ChipFile, chip_schema
from pipelines.ingest.chips.plan import APP, CutPlan, LastCut, RefusedSlide
from pipelines.ingest.chips.requests import write_last_cut
from pipelines.ingest.quarantine import BODY_NONE, PRIVATE, QUARANTINE_SCHEMA, STAGE_CHIPS, Origin, Rejection, rejections_table
from pipelines.lake.commit import commit_once
from pipelines.lake.files import NewFile, cut_paths, merged_stats, table_stats, upload_cut, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import QUARANTINE, cut_folder, cut_plan_path, cut_prefix


def commit_cut(lake: Lake, plan: CutPlan, cut: Sequence[ChipFile]) -> None:
    """Commit what became of the slides of a plan, and make durable that it is done. Raises as `commit_tables`."""
    commit_tables(lake, plan, cut)
    last = LastCut(plan.cut, plan.request, plan.after)
    write_last_cut(lake, last)
    clear_cut(lake, last)


def commit_tables(lake: Lake, plan: CutPlan, cut: Sequence[ChipFile]) -> None:
    """Commit to each table once, however often it is called.

    Args:
        lake: the lake.
        plan: the plan.
        cut: one for each of its slides.

    Raises:
        ConflictError: another committer is at work.
        CorruptLakeError: a file that was cut is gone.
    """
    by_table: dict[str, list[NewFile]] = defaultdict(list)
    for file in cut:
        if file.rejection is None:
            by_table[str(Path(file.path).parent)].append(_new_file(lake, file))
    upload_cut(lake, plan.cut)
    for table in sorted(by_table):
        commit_once(lake, table, by_table[table], chip_schema(), plan.cut, app=APP)
    refused = [
        *plan.refused,
        *(RefusedSlide(slide, file.rejection) for slide, file in zip(plan.slides, cut, strict=True) if file.rejection),
    ]
    if refused:
        commit_once(lake, QUARANTINE, [_refused(lake, plan, refused)], QUARANTINE_SCHEMA, plan.cut, PRIVATE, app=APP)


def clear_cut(lake: Lake, last: LastCut) -> None:
    """Remove what only a cut in hand needs, once it is committed; done again after a crash, it finds the rest."""
    lake.delete(cut_plan_path(lake.root, last.cut))
    shutil.rmtree(lake.root / cut_folder(last.cut), ignore_errors=True)
    lake.evict(cut_paths(lake, last.cut))


def _new_file(lake: Lake, file: ChipFile) -> NewFile:
    path = lake.root / file.path
    names = pq.read_schema(path).names
    # One column at a time: a slide may have millions of chips.
    stats = merged_stats([table_stats(pq.read_table(path, columns=[name], partitioning=None)) for name in names])
    return NewFile(str(Path(file.path).parent), file.path, file.rows, file.bytes, stats)


def _refused(lake: Lake, plan: CutPlan, refused: Sequence[RefusedSlide]) -> NewFile:
    """Rows that stand for no sample (count 0): the slide is a row of its stream, and stays one."""
    rejections = [
        Rejection(
            Origin(key.device, key.stream, key.epoch, f"{APP}/{one.slide.spec.name}", None, ()),
            STAGE_CHIPS,
            f"{one.slide.spec.name}: {one.reason}",
            key.seq,
            0,
            b"",
            BODY_NONE,
        )
        for one in refused
        for key in (one.slide.key,)
    ]
    table = rejections_table(rejections, plan.cut, plan.planned_at_us, "cut")
    runs = pa.array([one.slide.run for one in refused], pa.int64())
    table = table.set_column(table.column_names.index("run"), "run", runs)
    return write_table_file(lake, QUARANTINE, f"{cut_prefix(plan.cut)}.parquet", table, PRIVATE)
