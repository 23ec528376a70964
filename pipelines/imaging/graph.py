"""Chip cutting as a Beam pipeline: one element a slide, and one small reference to what became of it.

For runners with machines of their own. Each element is cut in a limited child process of its worker. Stands alone because no
other module of this room needs Beam.
"""

import functools
import shutil
from typing import Any

from pipelines.errors import CorruptLakeError
from pipelines.imaging.pool import CutLimits, CutterPool
from pipelines.imaging.store import ChipFile, ChipPlace, SlideRef
from pipelines.imaging.work import SlideTask, cut_slide, read_result
from pipelines.lake.lake import Lake
from pipelines.lake.layout import cut_folder
from pipelines.runners.engine import Engine
from pipelines.runners.run import beam, run_pipeline


def slide_tasks(lake: Lake, cut: int, slides: tuple[SlideRef, ...], max_pixels: int) -> list[SlideTask]:
    """The slides of a cut with the places of their chips: every name follows from the cut and the slide's place in it."""
    return [
        SlideTask(lake, ChipPlace(slide.key.stream, slide.spec.name, cut, number), slide, max_pixels)
        for number, slide in enumerate(slides)
    ]


def cut_chips(lake: Lake, cut: int, slides: tuple[SlideRef, ...], max_pixels: int) -> tuple[ChipFile, ...]:
    """Cut slides in this process, without limits of memory and time, and commit nothing: for trials and for trusted files.

    Args:
        lake: the lake.
        cut: number in the files' names.
        slides: what to cut; one entry for each slide and chip spec.
        max_pixels: a level with more pixels is refused before it is decoded.

    Returns:
        One for each slide, in their order; `rejection` says why a slide could not be cut.
    """
    done = tuple(cut_slide(task) for task in slide_tasks(lake, cut, slides, max_pixels))
    shutil.rmtree(lake.root / cut_folder(cut), ignore_errors=True)
    return done


def cut_on(engine: Engine, tasks: list[SlideTask], limits: CutLimits) -> tuple[ChipFile, ...]:
    """Cut slides on a runner; as `CutterPool.cut_all`."""
    left = [task for task in tasks if read_result(task) is None]
    if left:
        run_pipeline(engine, f"chips of cut {tasks[0].place.cut}", lambda pipeline: build(pipeline, left, limits))
    results = [read_result(task) for task in tasks]
    found = tuple(result for result in results if result is not None)
    if len(found) != len(tasks):
        raise CorruptLakeError("the pipeline ended without a result for each slide; run it again")
    return found


def build(pipeline: Any, tasks: list[SlideTask], limits: CutLimits) -> Any:
    """The chain itself."""
    return pipeline | "slides" >> beam.Create(tasks) | "spread" >> beam.Reshuffle() | "cut slide" >> beam.Map(_cut_here, limits)


def _cut_here(task: SlideTask, limits: CutLimits) -> int:
    _pool(limits).cut(task)
    return task.place.number


@functools.cache
def _pool(limits: CutLimits) -> CutterPool:
    """The child process of this worker, for its life."""
    return CutterPool(limits)
