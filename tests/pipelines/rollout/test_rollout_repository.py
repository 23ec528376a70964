"""The repository stays small whatever is published into it, refuses what devices would refuse, and takes things back."""

import hashlib
import json
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from onnx import TensorProto, helper
from tuf.api.metadata import Metadata, MetaFile, Snapshot, TargetFile, Targets, Timestamp

from pipelines.errors import NotFoundError, RefusedError
from pipelines.rollout.golden import try_model, try_within_limits
from pipelines.rollout.keys import KeyFolder, KeyPlan
from pipelines.rollout.model_roles import role_of, role_paths
from pipelines.rollout.role_files import MAX_METADATA_BYTES
from schemas.model import ImageInput, ModelSpec, model_spec_to_plain
from tests.fakes import bad_models
from tests.fakes import model_repository as fake
from tests.fakes.run_core import RunCore

SQUEEZENET_LABELS = tuple(f"n{number:08d} a class of ImageNet, number {number}" for number in range(1_000))
SQUEEZENET_ANSWERS = tuple(float(value) for value in np.random.default_rng(1).random(1_000))


def metadata_bytes(core: "fake.Core", model: str, version: int) -> int:
    """What a device that knows nothing reads of metadata for one version."""
    snapshot = core.repository.files.snapshot()
    role = role_of(model, version)
    names = ("timestamp.json", f"{snapshot.version}.snapshot.json", "1.root.json",
             *(f"{snapshot.meta[f'{each}.json'].version}.{each}.json" for each in ("targets", role)))  # fmt: skip
    return sum((core.repository.files.folder / name).stat().st_size for name in names)


def wide_model(answers: int) -> bytes:
    """A model that gives back its input, flat: as many answers as it has pixels."""
    shape = [1, answers]
    graph = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["y"])],
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)],
    )
    return bytes(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8).SerializeToString())


def publish_as_before(core: "fake.Core", *models: tuple[ModelSpec, bytes]) -> None:
    """Bring the repository into the form of the release before: the targets role says everything."""
    later = core.repository.files.now() + timedelta(days=30)
    targets = Targets(2, expires=later)
    for spec, body in models:
        path = f"{spec.name}/{spec.version}.onnx"
        digest = hashlib.sha256(body).hexdigest()
        targets.targets[path] = TargetFile(len(body), {"sha256": digest}, path, {"custom": model_spec_to_plain(spec)})
        file = core.folder / "targets" / spec.name / f"{digest}.{spec.version}.onnx"
        file.parent.mkdir(exist_ok=True)
        file.write_bytes(body)
    snapshot = Snapshot(2, expires=later, meta={"targets.json": MetaFile(2)})
    documents: tuple[tuple[str, str, Metadata[Any]], ...] = (
        ("2.targets.json", "targets", Metadata(targets)),
        ("2.snapshot.json", "snapshot", Metadata(snapshot)),
        ("timestamp.json", "timestamp", Metadata(Timestamp(2, expires=later, snapshot_meta=MetaFile(2)))),
    )
    for name, role, document in documents:
        document.sign(core.keys.signers(role)[0])
        (core.folder / "metadata" / name).write_bytes(document.to_bytes())


def spec_of(version: int, answers: tuple[float, ...] = (), name: str = "bright") -> ModelSpec:
    return ModelSpec(name, version, fake.IMAGE, fake.LABELS, golden=answers)


# -- size -----------------------------------------------------------------------------------------------------------------


def test_golden_answers_and_long_labels_lie_in_a_file_of_their_own(core: "fake.Core") -> None:
    answers, labels = SQUEEZENET_ANSWERS, SQUEEZENET_LABELS
    published = core.repository.publish("net", fake.tiny_model(), fake.IMAGE, labels=labels, golden=answers)
    assert core.repository.model("net", 1).spec == published.spec
    assert (published.spec.golden, published.spec.labels) == (answers, labels)
    for path in core.repository.files.folder.iterdir():
        assert path.stat().st_size < 4_000, path.name


@pytest.mark.slow
def test_after_1000_versions_of_a_model_with_1000_labels_a_device_reads_little_and_installs(
    core: "fake.Core", device: "fake.Device"
) -> None:
    specs = (ModelSpec("net", number, fake.IMAGE, SQUEEZENET_LABELS, golden=SQUEEZENET_ANSWERS) for number in range(1, 1_001))
    publish_as_before(core, *((spec, b"%d" % spec.version) for spec in specs))
    assert (core.repository.files.folder / "2.targets.json").stat().st_size > 40_000_000
    assert device.want(core.publish()) == "active"
    assert core.repository.publish("net", b"one more", fake.IMAGE, labels=SQUEEZENET_LABELS).spec.version == 1_001
    current = [path for path in core.repository.files.folder.iterdir() if path.name != "2.targets.json"]
    assert max(path.stat().st_size for path in current) <= MAX_METADATA_BYTES
    assert metadata_bytes(core, "net", 1_001) < 64_000
    assert metadata_bytes(core, "net", 999) < 64_000
    assert core.repository.model("net", 999).spec.labels == SQUEEZENET_LABELS


def test_a_model_with_a_million_answers_is_refused_and_the_next_good_one_installs(
    core: "fake.Core", device: "fake.Device"
) -> None:
    before = sorted(core.repository.files.folder.iterdir())
    answers = tuple(0.123456789 for _ in range(786_432))
    with pytest.raises(RefusedError, match=r"786,432 answers to the golden input have .* bytes; a device takes 4,194,304"):
        core.repository.publish("style", wide_model(786_432), ImageInput(512, 512, layout="flat"), golden=answers)
    assert sorted(core.repository.files.folder.iterdir()) == before
    assert device.want(core.publish()) == "active"


@pytest.mark.parametrize(("version", "role"), [(1, "a.0"), (99, "a.0"), (100, "a.1"), (12_345, "a.123")])
def test_one_role_vouches_for_a_hundred_versions(version: int, role: str) -> None:
    from fnmatch import fnmatchcase

    assert role_of("a", version) == role
    covering = [
        hundred
        for hundred in range(130)
        if any(fnmatchcase(f"a/{version}.onnx", pattern) for pattern in role_paths("a", hundred))
    ]
    assert [f"a.{hundred}" for hundred in covering] == [role]


# -- a repository of the release before -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_repository_of_the_release_before_serves_devices_and_moves_at_the_next_publish(
    core: "fake.Core", device: "fake.Device"
) -> None:
    bodies = {1: fake.tiny_model(), 2: fake.tiny_model(0.1)}
    publish_as_before(core, *((spec_of(version, try_model(body, fake.IMAGE).golden), body) for version, body in bodies.items()))
    assert device.want(core.repository.model("bright", 1)) == "active"
    third = core.publish(fake.tiny_model(0.2))
    assert third.spec.version == 3
    assert core.repository.files.targets().targets == {}
    assert len(core.repository.model("bright", 1).spec.golden) == 2
    for version in (2, 3, 1):
        assert device.want(core.repository.model("bright", version), f"r{version}") == "active"
        assert device.version == version


def test_a_repository_that_grew_too_large_for_devices_heals_at_the_next_publish(core: "fake.Core", device: "fake.Device") -> None:
    big = spec_of(1, tuple(0.123456789 for _ in range(500_000)), "style")
    publish_as_before(core, (spec_of(1), fake.tiny_model()), (big, b"a large one"))
    assert device.want(core.repository.model("bright", 1)) != "active"
    assert device.want(core.publish(fake.tiny_model(0.1))) == "active"
    assert core.repository.model("style").spec.golden == ()


# -- what a device would refuse -------------------------------------------------------------------------------------------


def test_fewer_keys_than_the_threshold_publish_nothing(tmp_path: Path) -> None:
    core = fake.Core(tmp_path / "other")
    (tmp_path / "core").mkdir()
    repository = type(core.repository)(tmp_path / "core/models", KeyFolder(tmp_path / "core/keys"), core.clock)
    repository.init(KeyPlan(targets=(2, 2)))
    (tmp_path / "core/keys/targets-2.pem").unlink()
    with pytest.raises(RefusedError, match="2 targets key must sign and 1 of them"):
        repository.publish("bright", fake.tiny_model(), fake.IMAGE)
    assert repository.models() == []


def test_a_key_that_the_root_does_not_know_signs_nothing(core: "fake.Core") -> None:
    for path in core.keys.folder.glob("targets-*.pem"):
        path.unlink()
    KeyFolder(core.keys.folder / "spare").generate(KeyPlan())
    (core.keys.folder / "spare" / "targets-1.pem").rename(core.keys.folder / "targets-1.pem")
    with pytest.raises(RefusedError, match="targets key must sign and 0 of them"):
        core.publish()


def test_nothing_is_published_under_a_root_that_is_over(core: "fake.Core") -> None:
    core.publish()
    before = {path: path.read_bytes() for path in core.folder.rglob("*.json")}
    core.clock.ahead_s = 3 * 366 * 86_400
    with pytest.raises(RefusedError, match=r"a device would refuse .*ExpiredMetadataError: Final root.json is expired"):
        core.publish()
    core.clock.ahead_s = 0.0
    assert {path: path.read_bytes() for path in core.repository.files.folder.iterdir()}.items() <= before.items()


@pytest.mark.parametrize(
    ("harm", "reason"),
    [(bad_models.hungry_model, "more memory than its limit of 192 MiB"), (bad_models.endless_model, "it took longer than 2 s")],
)
def test_a_model_that_would_harm_a_device_is_refused_where_it_is_published(
    tmp_path: Path, run_core: RunCore, harm: object, reason: str
) -> None:
    config, model = tmp_path / "core.toml", tmp_path / "bad.onnx"
    config.write_text('lake = "lake"\n[broker]\nport = 1\n')
    model.write_bytes(harm())  # type: ignore[operator]
    assert run_core("model", "init", "-c", str(config)).code == 0
    shape = ("--width", "4", "--height", "4", "--layout", "flat", "--colour", "grey")
    began_s = time.monotonic()
    result = run_core("model", "publish", "bad", str(model), *shape, "-c", str(config))
    assert result.code == 3
    assert reason in result.err
    assert time.monotonic() - began_s < 60
    assert json.loads(run_core("model", "ls", "--json", "-c", str(config)).out) == []


def test_a_trial_within_limits_answers_as_one_without(core: "fake.Core") -> None:
    body = fake.tiny_model(0.1)
    assert try_within_limits(body, fake.IMAGE) == try_model(body, fake.IMAGE)


# -- taking back ----------------------------------------------------------------------------------------------------------


def test_a_withdrawn_version_is_installed_by_nobody_and_its_number_is_not_given_again(
    core: "fake.Core", device: "fake.Device"
) -> None:
    first, second = core.publish(), core.publish(fake.tiny_model(0.1))
    assert core.repository.withdraw("bright", 2).spec.version == 2
    assert device.want(second) == "refused"
    assert "not among the targets" in device.updater.report()[0].reason
    assert device.want(first, "back") == "active"
    assert core.publish(fake.tiny_model(0.2)).spec.version == 3
    assert core.repository.withdrawn() == {"bright": (2,)}
    with pytest.raises(NotFoundError, match="no model 'bright' version 2; published: bright 1, bright 3"):
        core.repository.withdraw("bright", 2)


@pytest.mark.slow
def test_withdrawing_halts_the_rollouts_of_the_version(tmp_path: Path, run_core: RunCore) -> None:
    from pipelines.rollout.rollouts import Rollout, RolloutStore

    config = tmp_path / "core.toml"
    config.write_text('lake = "lake"\n[broker]\nport = 1\n')
    model = tmp_path / "good.onnx"
    model.write_bytes(fake.tiny_model())
    assert run_core("model", "init", "-c", str(config)).code == 0
    shape = ("--width", "4", "--height", "4", "--layout", "flat", "--colour", "grey")
    assert run_core("model", "publish", "bright", str(model), *shape, "-c", str(config)).code == 0
    store = RolloutStore(tmp_path / "lake/models/rollouts")
    store.save(Rollout("r", "bright", 1, "bright/1.onnx", "all", 10))
    assert "rollouts halted: r" in run_core("model", "withdraw", "bright", "1", "-c", str(config)).out
    assert (store.get("r").state, store.get("r").reason) == ("halted", "its version was withdrawn")
