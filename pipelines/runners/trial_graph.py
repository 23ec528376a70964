"""The tiny graph that shows whether a runner's workers work, as a process of its own (see `trial`)."""

import json
import os
import sys
import traceback

from pipelines.runners.engine import Engine
from pipelines.runners.run import PipelineOptions, beam


def answer(element: bytes) -> bytes:
    """Give the element back: a worker that can do this has Beam and this package."""
    return element


def main() -> None:
    """Run the graph on the engine that the command line names, and end at once, whatever Beam's threads still wait for."""
    engine = Engine(sys.argv[1], tuple(json.loads(sys.argv[2])))
    try:
        with beam.Pipeline(runner=engine.beam_name, options=PipelineOptions(engine.beam_options())) as pipeline:
            _ = pipeline | "One" >> beam.Create([b"x"], reshuffle=False) | "Answer" >> beam.Map(answer)
    except BaseException:  # noqa: BLE001  # it is told to the process that reads this one's output
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    os._exit(0)
