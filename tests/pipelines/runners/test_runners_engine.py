"""Which runner is meant, and which graphs it is not given."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import apache_beam as beam
import pytest
from apache_beam.coders import VarIntCoder
from apache_beam.transforms import window
from apache_beam.transforms.userstate import ReadModifyWriteStateSpec

from pipelines.errors import ConfigError, RefusedError
from pipelines.imaging import graph as imaging_graph
from pipelines.imaging.pool import CutLimits
from pipelines.ingest import graph as ingest_graph
from pipelines.lake.lake import lake_at
from pipelines.runners.engine import Engine, RunnerKind
from pipelines.runners.run import check_graph, dask_faults, with_prism


class Keeps(beam.DoFn):
    STATE = ReadModifyWriteStateSpec("s", VarIntCoder())

    def process(self, element: Any, state: Any = beam.DoFn.StateParam(STATE)) -> Any:  # noqa: B008  # Beam reads it there
        yield element


class Late(beam.DoFn):
    def process(self, element: Any) -> Any:
        return []

    def finish_bundle(self) -> Any:
        yield window.GlobalWindows.windowed_value(1)


class Acks(beam.DoFn):
    def process(self, element: Any, done: Any = beam.DoFn.BundleFinalizerParam) -> Any:
        yield element


def tagged(numbers: Any) -> Any:
    return numbers | beam.ParDo(lambda x: [x]).with_outputs("odd", main="even")


def two_ends(numbers: Any) -> None:
    doubled = numbers | beam.Map(lambda x: 2 * x)
    doubled | "a" >> beam.Map(print)
    doubled | "b" >> beam.Map(print)


WRONG: dict[str, Callable[[Any], Any]] = {
    "tagged outputs": tagged,
    "more than one consumer": two_ends,
    "2 ends": two_ends,
    "side inputs": lambda n: n | beam.Map(lambda x, s: x + s, beam.pvalue.AsSingleton(n.pipeline | "c" >> beam.Create([1]))),
    "more than one input": lambda n: (n, n.pipeline | "c" >> beam.Create([1])) | beam.Flatten(),
    "windows": lambda n: n | beam.WindowInto(window.FixedWindows(2)) | beam.Map(print),
    "state": lambda n: n | beam.Map(lambda x: (1, x)) | beam.ParDo(Keeps()),  # type: ignore[no-untyped-call]  # Beam gives it its constructor
    "finish_bundle": lambda n: n | beam.ParDo(Late()),  # type: ignore[no-untyped-call]  # Beam gives it its constructor
    "bundle's end": lambda n: n | beam.ParDo(Acks()),  # type: ignore[no-untyped-call]  # Beam gives it its constructor
    "reads with beam.io": lambda n: n.pipeline | beam.io.ReadFromParquet(__file__) | beam.Map(print),
}


@pytest.mark.parametrize("reason", WRONG)
def test_a_graph_that_dask_gets_silently_wrong_is_refused_with_the_reason(reason: str) -> None:
    pipeline = beam.Pipeline(runner="FnApiRunner")
    WRONG[reason](pipeline | "numbers" >> beam.Create([1, 2, 3]))
    with pytest.raises(RefusedError, match=reason):
        check_graph(pipeline, RunnerKind.DASK)
    check_graph(pipeline, RunnerKind.DIRECT)


def test_the_graphs_of_this_project_are_such_that_every_runner_gets_them_right(tmp_path: Path) -> None:
    run, chips = beam.Pipeline(runner="FnApiRunner"), beam.Pipeline(runner="FnApiRunner")
    ingest_graph.build(run, [], lake_at(tmp_path), 1)
    imaging_graph.build(chips, [], CutLimits(1))
    assert list(dask_faults(run)) == []
    assert list(dask_faults(chips)) == []


@pytest.mark.parametrize(
    ("arguments", "reason"),
    [
        ({"runner": "DirectRunner"}, "give one of direct, dask"),
        ({"runner": "direct", "workers": 2}, "only dask"),
        ({"runner": "dask", "workers": -1}, "1 or more"),
        ({"options": ("--streaming",)}, "bounded"),
        ({"options": ("--runner=x",)}, "before the --"),
    ],
)
def test_an_engine_that_cannot_be_is_refused_at_birth(arguments: dict[str, Any], reason: str) -> None:
    with pytest.raises(ConfigError, match=reason):
        Engine(**arguments)


def test_a_runner_without_its_address_says_what_to_give() -> None:
    with pytest.raises(ConfigError, match="--workers N"):
        Engine("dask").beam_options()
    with pytest.raises(ConfigError, match="--job_endpoint"):
        Engine("portable").beam_options()


def test_a_prism_that_is_not_there_is_never_downloaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(ConfigError, match=r"no program `prism` on the path.*--prism_location"):
        with_prism(Engine("prism"))
    with pytest.raises(ConfigError, match="/nonexistent/prism is no program"):
        with_prism(Engine("prism", ("--prism_location=/nonexistent/prism",)))
    with pytest.raises(ConfigError, match="--prism_location"):
        Engine("prism").beam_options()


def test_prism_is_found_as_the_shell_would_find_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "prism"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert with_prism(Engine("prism", ("--experiments=x",))).options == ("--experiments=x", f"--prism_location={program}")
    elsewhere = Engine("prism", ("--job_endpoint=localhost:1",))
    assert with_prism(elsewhere) == elsewhere


def test_dask_takes_one_work_item_to_a_task_unless_configured() -> None:
    assert "--dask_partition_size=1" in Engine("dask", ("--dask_client_address=tcp://h:1",)).beam_options()
    given = ("--dask_client_address=tcp://h:1", "--dask_npartitions", "3")
    assert Engine("dask", given).beam_options() == list(given)
    assert Engine("FnApiRunner").kind is RunnerKind.DIRECT
