"""A policy in a notebook: any frame in, the same kind of frame out, and the tags that a run would give."""

import subprocess
import sys
from pathlib import Path

import pandas as pd
import polars as pl
import pyarrow as pa
import pytest

from pipelines.errors import ConfigError, ExpressionError, NotFoundError, RefusedError
from pipelines.policy import Policy
from pipelines.policy.documents import load_policy

TEXT = """
id: driving
streams: [vehicle_telemetry]
rules:
  - {tag: fast, when: speed_mps > 20}
  - {tag: "speed:high", when: speed_mps > 25}
  - {tag: "speed:low", when: speed_mps > 30}
examples:
  - {row: {speed_mps: 22.0}, tags: [fast]}
"""
COLUMNS = {"speed_mps": [1.0, 22.0, None, 31.0], "mine": ["a", "b", "c", "d"]}
TAGS = [[], ["fast"], [], ["fast", "speed:high", "speed:low"]]


def tags_of(frame: object) -> list[list[str]]:
    column = frame["tags"]  # type: ignore[index]
    values = column.to_pylist() if isinstance(frame, pa.Table) else list(column)
    return [list(value) for value in values]


@pytest.mark.parametrize(
    "frame",
    [
        pa.table(COLUMNS),
        pa.table({**COLUMNS, "speed_mps": pa.array(COLUMNS["speed_mps"], pa.float32())}),
        pl.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS),
        pd.DataFrame(COLUMNS).convert_dtypes(),
        pa.table(COLUMNS).to_batches()[0],
        COLUMNS,
    ],
    ids=["pyarrow", "narrower", "polars", "pandas", "pandas-nullable", "batch", "dict"],
)
def test_a_frame_of_any_library_gets_its_tags_and_keeps_its_kind(frame: object) -> None:
    found = Policy.parse(TEXT).apply(frame)
    assert tags_of(found) == TAGS
    if isinstance(frame, pl.DataFrame | pd.DataFrame):
        assert type(found) is type(frame)
        assert "tags" not in frame.columns
        assert list(found["mine"]) == ["a", "b", "c", "d"]


def test_rules_can_be_tried_one_after_another_without_a_file() -> None:
    first = Policy.parse(TEXT)
    second = first.with_rule("fast", "speed_mps > 21.5").without("speed:low")
    assert second.version != first.version
    assert tags_of(second.apply(COLUMNS))[3] == ["speed:high", "fast"]
    assert Policy.parse(second.yaml).version == second.version


def test_a_frame_of_no_known_stream_is_judged_by_its_own_columns() -> None:
    policy = Policy.parse("id: x\nstreams: [ad_hoc]\nrules: [{tag: hot, when: celsius > 30 AND place = 'attic'}]\n")
    frame = pl.DataFrame({"celsius": [20, 40], "place": ["attic", "attic"]})
    assert tags_of(policy.apply(frame)) == [[], ["hot"]]


def test_problems_are_reported_before_anything_is_applied() -> None:
    assert Policy.parse(TEXT).check() == []
    assert "gets fast" in Policy.parse(TEXT.replace("tags: [fast]", "tags: []")).check()[0]
    assert "sped_mps" in Policy.parse(TEXT.replace("when: speed_mps > 20", "when: sped_mps > 20")).check()[0]
    with pytest.raises(ExpressionError):
        Policy.parse(TEXT).with_rule("x", "nothing > 1").apply(COLUMNS)
    with pytest.raises(RefusedError, match="DataFrame"):
        Policy.parse(TEXT).apply(5)
    with pytest.raises(NotFoundError, match="not for 'slide'"):
        Policy.parse(TEXT).apply(COLUMNS, "slide")
    with pytest.raises(ConfigError, match="policy:3: unknown key"):
        Policy.parse("id: x\nstreams: [a]\nrule: []\n")
    with pytest.raises(RefusedError, match="column speed_mps"):
        Policy.parse(TEXT).apply({"speed_mps": ["fast"]})


def test_it_shows_itself_its_matches_and_its_reasons() -> None:
    policy = Policy.parse(TEXT)
    assert "speed_mps &gt; 20" in policy._repr_html_()  # what a notebook calls
    assert "fast: speed_mps > 20" in repr(policy)
    found = policy.look(COLUMNS)
    assert "conflict" in repr(found)
    assert "2 of 4 rows get a tag" in found._repr_html_()  # likewise
    assert policy.explain(COLUMNS, 3)[0].verdict == "true"


def test_pictures_in_a_frame_are_inspected() -> None:
    text = "id: x\nstreams: [camera_frame]\nrules: [{tag: broken, when: inspect_errors IS NOT NULL}]\ninspect: [{use: image}]\n"
    frame = pa.table({"payload": pa.array([b"rubbish"]), "payload_sha256": ["a"]})
    assert tags_of(Policy.parse(text).apply(frame)) == [["broken"]]


def test_the_package_loads_no_more_than_before_until_the_notebook_s_class_is_requested() -> None:
    code = "import sys, pipelines.policy; assert 'polars' not in sys.modules; from pipelines.policy import Policy; Policy.load"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_notebook_loads_the_policies_that_are_shipped() -> None:
    for path in sorted((Path(__file__).parents[3] / "deploy" / "policies").glob("*.yaml")):
        policy = Policy.load(path)
        assert policy.check() == []
        assert policy.document == load_policy(path)
