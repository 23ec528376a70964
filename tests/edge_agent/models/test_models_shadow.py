"""A candidate looks at some pictures next to the version that answers; what they disagree about leaves the device first."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edge_agent.capture.pump import urgent_first
from edge_agent.models.prediction_queue import PredictionQueue
from edge_agent.models.tallying import Shadow
from edge_agent.sections import MAX_PRIORITY
from edge_agent.sources.api import SampleBatch
from schemas.contract import builtin_contract
from schemas.model_tally import ModelTally
from tests.fakes import bad_models
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture
from tests.plant.present import present

SHADOW: dict[str, Any] = {"shadow_frames": 4, "shadow_every": 2, "shadow_cpu_share": 1.0}


@pytest.fixture
def comparing(core: "fake.Core", tmp_path: Path) -> Iterator["fake.Device"]:
    """A device on which version 1 answers and version 2, which says dark for everything, is compared with it."""
    device = fake.Device(core, tmp_path / "state", **SHADOW)
    device.want(core.publish())
    assert device.want(core.publish(fake.tiny_model(0.6))) == "active"
    yield device
    device.close()


def queue_of(device: "fake.Device") -> PredictionQueue:
    return present(device.models.predictor(builtin_contract("camera_frame")))


def tally(device: "fake.Device") -> ModelTally:
    tallies = device.updater.report()[0].tallies
    assert isinstance(tallies, tuple)
    return tallies[0]


def test_a_candidate_answers_nothing_until_enough_was_compared(comparing: "fake.Device") -> None:
    queue = queue_of(comparing)
    pending = queue.submit(frames(*[picture(250), picture(250), picture(3), picture(3)]))
    assert pending.wait(60)
    batch = pending.take()
    assert batch.columns["model_version"] == [1] * 4
    assert batch.urgent == [False, True, False, False]  # of every second one the candidate calls the bright one dark
    assert (tally(comparing).compared, tally(comparing).disagreed) == (2, 1)
    assert tally(comparing).pairs == (("bright", "dark", 1),)
    comparing.settle()
    assert comparing.version == 1
    assert queue.submit(frames(*[picture(250)] * 4)).wait(60)
    comparing.settle()
    assert comparing.version == 2
    before = present(comparing.updater.report()[0].tallies)[1]  # type: ignore[index]
    assert (before.version, before.compared, before.disagreed) == (1, 4, 3)


def test_a_candidate_that_is_not_wanted_any_more_is_ended(core: "fake.Core", comparing: "fake.Device") -> None:
    candidate = present(comparing.updater.running.shadow).process
    comparing.updater.on_desired(b"")
    comparing.settle()
    assert comparing.updater.running.shadow is None
    assert candidate.pid is None
    assert comparing.version == 1


def test_a_candidate_that_dies_is_refused_and_the_answers_go_on(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", max_ms=20_000, **SHADOW)
    device.want(core.publish())
    device.want(core.publish(bad_models.moody_model("eats"), golden=()))
    pending = queue_of(device).submit(frames(*[picture(1)] * 4))
    assert pending.wait(60)
    assert pending.take().columns["model_version"] == [1] * 4
    device.settle()
    (report,) = device.updater.report()
    assert (report.version, report.refused) == (1, (2,))
    assert "while it was compared" in report.reason
    device.close()


def test_a_comparison_ends_by_time_where_few_pictures_come(comparing: "fake.Device") -> None:
    comparing.clock.sleep(90_000)
    comparing.settle()
    assert comparing.version == 2


def test_a_candidate_takes_no_more_than_its_share_of_the_time() -> None:
    class Slow:
        asked = 0

        def look_at(self, _payload: bytes) -> list[dict[str, str]]:
            self.asked += 1
            return [{"predicted_label": "x"}]

    process = Slow()
    shadow = Shadow(process, every=1, cpu_share=1e-9, frames=10, longest_s=60, began_s=0)  # type: ignore[arg-type]
    for _ in range(100):
        shadow.label_of(b"")
    assert process.asked == shadow.compared == 1


def test_urgent_samples_have_a_group_of_their_own_and_the_position_stays() -> None:
    batch = SampleBatch([1, 2, 3], {"a": [1, 2, 3]}, None, b"p", urgent=[False, True, False])
    groups = urgent_first(((5, batch),))
    assert [(priority, list(group.event_time_us), group.position) for priority, group in groups] == [
        (MAX_PRIORITY, [2], b"p"),
        (5, [1, 3], b"p"),
    ]
    plain = ((5, SampleBatch([1], {})),)
    assert urgent_first(plain) == plain


def test_a_kill_during_a_comparison_leaves_the_old_version_and_begins_again(core: "fake.Core", tmp_path: Path) -> None:
    killed = fake.Device(core, tmp_path / "state", **SHADOW)
    killed.want(core.publish())
    second = core.publish(fake.tiny_model(0.6))
    killed.want(second)
    candidate = present(killed.updater.running.shadow).process  # and here the agent is killed: nothing of it is on disk
    again = fake.Device(core, tmp_path / "state", **SHADOW)
    assert again.version == 1
    before = len(core.requests)
    again.want(second)
    assert again.version == 1
    assert present(again.updater.running.shadow).compared == 0
    assert not any(".onnx" in request for request in core.requests[before:])  # its bytes are there
    assert again.updater.store.state.attempts_of(2) == 0
    candidate.close()
    killed.updater.running.use(None)
    again.close()
