"""A model that is vouched for but unfit is given up, and the one before runs on."""

from pathlib import Path

import pytest

from schemas.model import golden_input
from tests.fakes import model_repository as fake
from tests.fakes.bad_models import moody_model
from tests.fakes.model_repository import frames, picture
from tests.plant.present import present


@pytest.mark.parametrize(
    ("body", "golden"),
    [
        (b"no ONNX at all", (0.0,)),
        (fake.tiny_model(), (0.5, 0.9)),
        (fake.tiny_model(), (0.5,)),
        (fake.tiny_model(float("nan")), (0.5, 0.5)),
    ],
    ids=["does not load", "answers otherwise", "answers another count", "answers NaN"],
)
def test_a_model_that_fails_its_self_test_is_refused_for_good(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, body: bytes, golden: tuple[float, ...]
) -> None:
    device.want(core.publish())
    unfit = core.publish(body, golden=golden)
    assert device.want(unfit) == "refused"
    request_count = len(core.requests)
    device.clock.sleep(100_000)
    device.settle()
    assert len(core.requests) == request_count
    again = fake.Device(core, tmp_path / "state")
    assert again.want(unfit) == "refused"
    assert again.updater.report()[0].refused == (2,)
    assert again.version == 1


@pytest.mark.slow
def test_a_model_that_fails_on_probation_is_given_up_for_the_one_before(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(moody_model("fails"), golden=()))
    got = device.updater.annotate(frames(picture(250), *[picture(1)] * 5)).columns["model_version"]
    assert got == [2, None, None, None, None, None]
    device.settle()
    (report,) = device.updater.report()
    assert (report.state, report.version, report.refused) == ("rolled_back", 1, (2,))
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]


def test_bad_pictures_do_not_speak_against_a_model(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.updater.annotate(frames(*[b"torn"] * 50))
    assert device.updater.report()[0].state == "active"


def test_a_model_past_probation_is_not_given_up(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish(moody_model("fails"), golden=()))
    device.clock.sleep(10_000)
    device.settle()
    device.updater.annotate(frames(*[picture(1)] * 50))
    device.settle()
    assert device.updater.report()[0].state == "active"
    assert device.updater.counts["failures"] == 50


def test_a_model_that_keeps_killing_the_agent_is_given_up(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(fake.tiny_model(0.1)))
    states = [fake.Device(core, tmp_path / "state").updater.report()[0] for _ in range(4)]
    assert [(report.state, report.version) for report in states] == [("active", 2)] * 3 + [("rolled_back", 1)]


def test_while_a_version_is_on_probation_the_proven_one_stays_to_go_back_to(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    for bias in (0.1, 0.2):
        device.want(core.publish(fake.tiny_model(bias)))
    device.updater.store.go_back("test")
    assert device.version == 1


def test_a_rotten_model_on_disk_gives_way_to_the_one_before(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    device.clock.sleep(10_000)
    device.settle()
    device.want(core.publish(fake.tiny_model(0.1)))
    store = device.updater.store
    path = store.path(present(store.state.active))
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")
    assert fake.Device(core, tmp_path / "state").version == 1


def test_a_state_of_which_both_copies_are_torn_costs_a_fetch_of_nothing(
    core: "fake.Core", device: "fake.Device", tmp_path: Path
) -> None:
    published = core.publish()
    device.want(published)
    folder = tmp_path / "state/models/bright"
    for name in ("state.json", "state.copy.json"):
        (folder / name).write_bytes(b"\0\0")
    again = fake.Device(core, tmp_path / "state")
    assert again.updater.report()[0].state == "none"
    core.requests.clear()
    assert again.want(published) == "active"
    assert not any('.onnx"' in request for request in core.requests)


def test_a_model_above_the_device_s_limit_is_refused_before_it_is_fetched(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", max_bytes=100)
    assert device.want(core.publish()) == "refused"
    assert not any('.onnx"' in request for request in core.requests)


def test_the_golden_input_touches_all_of_its_range() -> None:
    values = golden_input(10_000)
    assert min(values) < 0.001
    assert max(values) > 0.999
    assert len(set(values)) == 10_000


def test_desired_states_for_others_or_of_nonsense_change_nothing(core: "fake.Core", device: "fake.Device") -> None:
    for body in (b"", b"{}", b'{"rollout":"r","name":"other","version":1,"target":"other/1.onnx","issued_ms":1}', b"\xff"):
        device.updater.on_desired(body)
    device.settle()
    assert core.requests == []
