"""What is in a model's way is not its fault: network, disk, clock and orders block it, and nothing is refused for that."""

import shutil
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest

from edge_agent.models import fetcher, loader
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.store import ModelStore
from pipelines.rollout.server import PieceAnswer
from schemas.rollout import Desired, encode_desired
from tests.fakes import model_repository as fake
from tests.fakes.director import DEVICE, NOW_MS, FakeDirector, OrderTaker, wanted
from tests.fakes.model_repository import frames, picture


def test_a_disk_without_room_is_reported_with_its_reason_and_keeps_no_partial_file(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.1, padding=100_000))
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: SimpleNamespace(free=500_000))
    assert device.want(second) == "blocked"
    (report,) = device.updater.report()
    assert (report.version, report.refused) == (1, ())
    assert report.reason.startswith("disk: bright/2.onnx needs ")
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]
    monkeypatch.undo()
    device.clock.sleep(60)
    device.settle()
    assert (device.version, device.updater.report()[0].state) == (2, "active")


def test_what_a_killed_download_left_is_removed_at_the_next_start(tmp_path: Path) -> None:
    ModelStore(tmp_path)
    (tmp_path / "incoming.onnx").write_bytes(b"half of it")
    ModelStore(tmp_path)
    assert not (tmp_path / "incoming.onnx").exists()


def test_files_that_a_killed_fetch_left_are_removed_at_the_next_start(core: "fake.Core", tmp_path: Path) -> None:
    left = tmp_path / "state" / "models" / "bright" / "fetched"
    left.mkdir(parents=True)
    (left / "0").write_bytes(b"half of it")
    fake.Device(core, tmp_path / "state").close()
    assert not left.exists()


def test_a_check_that_cannot_be_made_blocks_the_model_and_refuses_nothing(
    core: "fake.Core", device: "fake.Device", monkeypatch: pytest.MonkeyPatch
) -> None:
    published = core.publish()
    monkeypatch.setattr(fetcher, "_TARGET", "edge_agent.models.trust:no_such_name")
    assert device.want(published) == "blocked"
    (report,) = device.updater.report()
    assert report.refused == ()
    assert report.reason.startswith("the process that checks signatures does not start: ")
    monkeypatch.undo()
    device.clock.sleep(60)
    device.settle()
    assert device.version == 1


def test_a_halt_reaches_a_download_under_way(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.2))
    halted = threading.Event()

    def halt(request: str, found: PieceAnswer) -> PieceAnswer:
        if '.onnx"' in request:
            device.updater.on_desired(b"")
            halted.set()
        return found

    core.tamper = halt
    device.want(second)
    assert halted.is_set()
    (report,) = device.updater.report()
    assert (report.version, report.state, report.refused) == (1, "active", ())
    assert not any((tmp_path / "state/models/bright/versions").glob("2-*"))


def test_a_halt_reaches_a_version_while_it_is_tried(
    core: "fake.Core", device: "fake.Device", monkeypatch: pytest.MonkeyPatch
) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.2))

    class Halted(ModelProcess):
        def start(self) -> None:
            super().start()
            device.updater.on_desired(b"")

    monkeypatch.setattr(loader, "ModelProcess", Halted)
    device.want(second)
    assert device.version == 1
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]


def test_an_order_that_expired_while_the_device_was_away_is_void_when_it_returns(core: "fake.Core", tmp_path: Path) -> None:
    director, clock = FakeDirector(), fake.Clock()
    clock.ahead_s = (NOW_MS - clock.now_ms()) / 1000
    published = core.publish()
    order = director.order(5, models=(wanted(1, "bright"),), expires_ms=clock.now_ms() + 60_000)
    taker = OrderTaker(tmp_path / "state", director.public_key, clock=clock)
    assert taker.take(order) == (1,), DEVICE
    clock.sleep(100.0)
    back = OrderTaker(tmp_path / "state", director.public_key, clock=clock)
    device = fake.Device(core, tmp_path / "state", orders=back.inbox, clock=clock)
    device.updater.on_desired(order)
    device.settle()
    (report,) = device.updater.report()
    assert (report.version, report.state) == (0, "blocked")
    assert report.reason.startswith("clock: the order expired at 2027-")
    device.updater.on_desired(director.order(6, models=(wanted(1, "bright"),), expires_ms=clock.now_ms() + 60_000))
    device.settle()
    assert device.version == published.spec.version
    device.close()


# -- probation ------------------------------------------------------------------------------------------------------------


def test_a_version_is_reported_as_on_probation_until_it_has_proved_itself(core: "fake.Core", device: "fake.Device") -> None:
    device.want(core.publish())
    assert device.updater.report()[0].on_probation is True
    device.clock.sleep(601)
    device.settle()
    assert device.updater.report()[0].on_probation is not True


@pytest.mark.slow
def test_a_device_that_is_switched_off_before_each_probation_ends_passes_it_in_the_end(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", probation_s=600.0)
    device.want(core.publish())
    for _ in range(4):
        device.clock.sleep(160)
        device.settle()
        device.close()
        device = fake.Device(core, tmp_path / "state", probation_s=600.0)
    device.settle()
    assert not device.updater.store.state.on_probation
    assert device.version == 1
    device.close()


def test_running_time_survives_a_kill(core: "fake.Core", tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state", probation_s=600.0)
    device.want(core.publish())
    device.clock.sleep(500)
    device.settle()
    again = fake.Device(core, tmp_path / "state", probation_s=600.0)
    assert again.updater.store.state.watched_s >= 500
    again.close()
    shutil.rmtree(tmp_path / "state")


def test_an_unsigned_order_of_nothing_is_followed(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    core.tamper = lambda _request, _found: None
    device.updater.on_desired(encode_desired(Desired("r", "bright", 1, published.target, 1)))
    device.updater.on_desired(b"")
    core.tamper = lambda _request, found: found
    device.settle()
    assert (device.version, device.updater.report()[0].state) == (0, "none")
