"""Where a model comes from: signed with it, written into its file, and shown of any file."""

import json
import threading
from contextlib import suppress
from pathlib import Path

import onnx
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipelines.errors import NotFoundError, RefusedError
from pipelines.lake.lake import lake_at
from pipelines.rollout.onnx_metadata import read_metadata, with_metadata
from pipelines.rollout.origin import check_origin, origin_entries, origin_in, origin_of_set
from schemas.errors import SchemaError
from schemas.model_origin import MAX_METRICS, ModelOrigin
from tests.fakes import model_repository as fake
from tests.fakes.run_core import RunCore

HASH = "ab" * 32
ORIGIN = ModelOrigin("faults/3", HASH, "4f2c1d", {"accuracy": 0.97})
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


def a_set(lake: Path, version: int = 3) -> Path:
    """A set's folder with a manifest; what is in it does not matter here, only its hash."""
    folder = lake / "sets" / "faults" / str(version)
    folder.mkdir(parents=True)
    (folder / "manifest.json").write_text(json.dumps({"version": version}))
    return folder


# -- the file ---------------------------------------------------------------------------------------------------------


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_onnx_itself_reads_the_entries_and_the_model_is_the_same(entries: dict[str, str]) -> None:
    before = fake.tiny_model()
    after = onnx.load_from_string(with_metadata(before, entries))
    assert {entry.key: entry.value for entry in after.metadata_props} == entries
    assert after.graph == onnx.load_from_string(before).graph
    onnx.checker.check_model(after)


@given(st.dictionaries(TEXTS, TEXTS, max_size=4))
def test_entries_that_onnx_wrote_are_read(entries: dict[str, str]) -> None:
    model = onnx.load_from_string(fake.tiny_model())
    for key, value in entries.items():
        entry = model.metadata_props.add()
        entry.key, entry.value = key, value
    assert read_metadata(model.SerializeToString()) == entries


def test_an_entry_that_is_there_already_changes_nothing_and_another_value_replaces_it() -> None:
    once = with_metadata(fake.tiny_model(), {"a": "1"})
    assert with_metadata(once, {"a": "1"}) == once
    assert read_metadata(with_metadata(once, {"a": "2"})) == {"a": "2"}


@given(st.binary(max_size=200))
def test_other_bytes_are_refused_or_hold_nothing_that_is_not_in_them(body: bytes) -> None:
    with suppress(RefusedError):
        assert sum(map(len, read_metadata(body))) <= len(body)


def test_a_file_that_is_cut_off_is_refused() -> None:
    with pytest.raises(RefusedError, match="cut off"):
        read_metadata(fake.tiny_model()[:-3])


# -- the origin -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "parts",
    [
        {"training_set": "faults/3"},
        {"manifest_sha256": HASH},
        {"training_set": "../faults/3", "manifest_sha256": HASH},
        {"training_set": "faults/3", "manifest_sha256": "abc"},
        {"code": "a b"},
        {"metrics": {"": 1.0}},
        {"metrics": {"a": float("nan")}},
        {"metrics": {f"m{number}": 1.0 for number in range(MAX_METRICS + 1)}},
    ],
)
def test_an_origin_of_nonsense_is_refused(parts: dict[str, object]) -> None:
    with pytest.raises(SchemaError):
        ModelOrigin(**parts)  # type: ignore[arg-type]  # as it comes from outside


def test_an_origin_goes_through_a_file_and_is_compared_with_the_set_here(tmp_path: Path) -> None:
    folder, lake = a_set(tmp_path), lake_at(tmp_path)
    (tmp_path / "m.json").write_text('{"accuracy": 0.97, "recall/scratch": 1}')
    origin = origin_of_set(lake, "faults", "4f2c1d", tmp_path / "m.json")
    assert (origin.training_set, origin.metrics) == ("faults/3", {"accuracy": 0.97, "recall/scratch": 1.0})
    assert origin_in(with_metadata(fake.tiny_model(), origin_entries(origin))) == origin
    assert check_origin(lake, origin).set_here == "same"
    (folder / "manifest.json").write_text("{}")
    assert check_origin(lake, origin).set_here == "differs"
    assert check_origin(lake, ModelOrigin("other/1", HASH)).set_here == "absent"
    assert origin_in(fake.tiny_model()) is None


@pytest.mark.parametrize("body", ["[1]", '{"a": "b"}', '{"a": {"b": 1}}', "{"])
def test_metrics_that_are_no_numbers_are_refused(tmp_path: Path, body: str) -> None:
    a_set(tmp_path)
    (tmp_path / "m.json").write_text(body)
    with pytest.raises(RefusedError, match="JSON object of numbers"):
        origin_of_set(lake_at(tmp_path), "faults/3", "", tmp_path / "m.json")
    with pytest.raises(NotFoundError):
        origin_of_set(lake_at(tmp_path), "faults/4")


def test_a_file_with_a_forged_origin_is_refused() -> None:
    with pytest.raises(RefusedError, match="malformed"):
        origin_in(with_metadata(fake.tiny_model(), {"catchment.set": "faults/3"}))


def test_an_origin_is_signed_in_the_details_and_costs_the_roles_nothing(core: "fake.Core") -> None:
    plain = core.repository.publish("bright", fake.tiny_model(), fake.IMAGE, labels=fake.LABELS)
    published = core.repository.publish("bright", fake.tiny_model(), fake.IMAGE, labels=fake.LABELS, origin=ORIGIN)
    assert core.repository.model("bright", 2).spec.origin == ORIGIN
    assert (core.repository.model("bright", 1).spec.origin, plain.digest) == (None, published.digest)
    assert not [path for path in (core.folder / "metadata").iterdir() if HASH.encode() in path.read_bytes()]
    assert core.repository.version_of("00" * 32) is None


def test_twenty_publishes_at_once_each_get_a_version_of_their_own(core: "fake.Core") -> None:
    versions: list[int] = []
    models = [fake.tiny_model(number / 100) for number in range(20)]
    threads = [threading.Thread(target=lambda model=model: versions.append(core.publish(model).spec.version)) for model in models]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(versions) == list(range(1, 21))
    assert [model.spec.version for model in core.repository.models()] == list(range(1, 21))


# -- commands ---------------------------------------------------------------------------------------------------------


def test_publish_and_show_tell_where_a_model_comes_from(tmp_path: Path, run_core: RunCore) -> None:
    (tmp_path / "core.toml").write_text('lake = "lake"\n[broker]\nport = 1\n')
    core = ("-c", str(tmp_path / "core.toml"))
    a_set(tmp_path / "lake")
    assert run_core("model", "init", *core).code == 0
    (tmp_path / "plain.onnx").write_bytes(fake.tiny_model())
    shape = ("--width", "4", "--height", "4", "--colour", "grey", "--layout", "flat", "--labels", "dark,bright", *core)
    file = str(tmp_path / "plain.onnx")
    assert "it has no origin" in run_core("model", "publish", "bright", file, *shape).out
    assert run_core("model", "publish", "bright", file, "--code", "4f2c1d", *shape).code == 3
    done = run_core("model", "publish", "bright", file, "--set", "faults", "--code", "4f2c1d", *shape)
    assert (done.code, "origin" in done.out) == (0, False)
    assert "origin: none" in run_core("model", "show", "bright", "--version", "1", *core).out
    assert "set: faults/3" in run_core("model", "show", "bright", *core).out
    target = next((tmp_path / "lake/models/targets/bright").glob("*.2.onnx"))
    shown = run_core("model", "show", str(target), *core).out
    assert "published: bright version 2" in shown
    assert "set here: this lake has it" in shown
    shown = run_core("model", "show", file, *core).out
    assert "origin: none: nobody said" in shown
    foreign = tmp_path / "foreign.onnx"
    foreign.write_bytes(with_metadata(fake.tiny_model(0.5), origin_entries(ORIGIN)))
    shown = run_core("model", "show", str(foreign), *core).out
    assert "nobody vouches for this file" in shown
    assert "this lake has ANOTHER set of that name" in shown
    assert run_core("model", "publish", "bright", str(foreign), "--set", "faults", *shape).code == 3
