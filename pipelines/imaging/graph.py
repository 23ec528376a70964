"""Chip cutting as a Beam pipeline: slides -> bands -> cut bands -> one file of chip rows for each slide.

One linear chain of small references; pixels live inside a step. A slide that cannot be read rides along as a refusal.
"""

import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError
from pipelines.imaging.store import ChipFile, ChipPlace, SlideRef
from pipelines.imaging.work import BandRows, Refusal, SlideTask, cut, finish_slide, plan_bands
from pipelines.lake.lake import Lake
from pipelines.runners.beam import beam
from pipelines.runners.engine import Engine
from pipelines.runners.run import run_pipeline

IN_PROCESS = Engine()


def cut_chips(
    lake: Lake, run: int, slides: tuple[SlideRef, ...], max_pixels: int, engine: Engine = IN_PROCESS
) -> tuple[ChipFile, ...]:
    """Cut slides into chips; writes their pixels, pictures and chip rows, and commits nothing.

    Every name follows from `run` and the slide's place in `slides`, so running again after a crash gives the same files.

    Args:
        lake: the lake, reachable from every worker.
        run: number of the ingest run.
        slides: what to cut; one entry for each slide and chip spec.
        max_pixels: a level with more pixels is refused before it is decoded.
        engine: where the graph runs.

    Returns:
        One for each slide, in their order; `rejection` tells why a slide could not be cut.
    """
    if not slides:
        return ()
    done = lake.root / "chips" / ".done" / f"{run:012d}"
    shutil.rmtree(done, ignore_errors=True)
    done.mkdir(parents=True)
    tasks = [
        SlideTask(lake, ChipPlace(slide.key.stream, slide.spec.name, run, number), slide, max_pixels)
        for number, slide in enumerate(slides)
    ]
    run_pipeline(engine, f"chips of run {run}", lambda pipeline: build(pipeline, tasks, done))
    files = tuple(_read_done(done / f"{number}.json") for number in range(len(slides)))
    shutil.rmtree(done)
    return files


def build(pipeline: Any, tasks: list[SlideTask], done: Path) -> Any:
    """The chain itself."""
    return (
        pipeline
        | "slides" >> beam.Create(tasks)
        | "plan bands" >> beam.FlatMap(plan_bands)
        | "spread" >> beam.Reshuffle()
        | "cut band" >> beam.Map(cut)
        | "by slide" >> beam.Map(_by_slide)
        | "gather" >> beam.GroupByKey()
        | "write rows" >> beam.Map(_finish, str(done))
    )


def _by_slide(part: BandRows | Refusal) -> tuple[int, BandRows | Refusal]:
    return part.task.place.number, part


def _finish(numbered: tuple[int, Iterable[BandRows | Refusal]], done: str) -> int:
    number, parts = numbered
    write_atomic(Path(done) / f"{number}.json", msgspec.json.encode(finish_slide(parts), enc_hook=str))
    return number


def _read_done(path: Path) -> ChipFile:
    try:
        return msgspec.json.decode(path.read_bytes(), type=ChipFile, dec_hook=_text)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: the pipeline ended without a result for this slide; run it again") from error


def _text(kind: type, value: Any) -> Any:
    """Ids are texts that check themselves."""
    return kind(value)
