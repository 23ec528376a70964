"""What the signing keys do not vouch for is refused, and the old model keeps running."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pipelines.rollout.server import PieceAnswer
from tests.fakes import model_repository as fake
from tests.fakes.model_repository import frames, picture


def _flip(found: PieceAnswer) -> PieceAnswer:
    return replace(found, body=bytes([found.body[0] ^ 1]) + found.body[1:])


def _altered_target(core: "fake.Core", _tmp: Path) -> None:
    core.tamper = lambda request, found: _flip(found) if '"targets/' in request and found.body else found


def _endless_target(core: "fake.Core", _tmp: Path) -> None:
    def grow(request: str, found: PieceAnswer) -> PieceAnswer:
        if '"targets/' not in request:
            return found
        length = msgspec.json.decode(request)["length"]
        return replace(found, total=1 << 40, body=b"x" * length)

    core.tamper = grow


def _endless_timestamp(core: "fake.Core", _tmp: Path) -> None:
    def grow(request: str, found: PieceAnswer) -> PieceAnswer:
        length = msgspec.json.decode(request)["length"]
        return replace(found, total=1 << 40, body=b"x" * length) if "timestamp" in request else found

    core.tamper = grow


def _cut_target(core: "fake.Core", _tmp: Path) -> None:
    def cut(request: str, found: PieceAnswer) -> PieceAnswer:
        short = len(found.body) - 7
        return replace(found, total=short, body=found.body[:short]) if '"targets/' in request else found

    core.tamper = cut


def _unsigned_targets(core: "fake.Core", _tmp: Path) -> None:
    path = core.folder / "metadata" / "2.bright.0.json"
    body = path.read_text()
    assert '"bright/2.onnx"' in body
    path.write_text(body.replace('"bright/2.onnx"', '"bright/9.onnx"'))


def _foreign_repository(core: "fake.Core", tmp: Path) -> None:
    foreign = fake.Core(tmp / "foreign")
    foreign.publish()
    foreign.publish(fake.tiny_model(0.3))
    core.folder = foreign.folder


def _expired_timestamp(core: "fake.Core", _tmp: Path) -> None:
    core.clock.ahead_s = -30 * 86_400
    assert core.repository.publish("other", fake.tiny_model(), fake.IMAGE).spec.version == 1


def _mixed_snapshot(core: "fake.Core", _tmp: Path) -> None:
    metadata = core.folder / "metadata"
    shutil.copy(metadata / "2.snapshot.json", metadata / "3.snapshot.json")


def _other_model(core: "fake.Core", _tmp: Path) -> None:
    core.repository.publish("other", fake.tiny_model(), fake.IMAGE)


ATTACKS: dict[str, Callable[["fake.Core", Path], None]] = {
    "altered target of equal length": _altered_target,
    "endless target": _endless_target,
    "endless timestamp": _endless_timestamp,
    "target cut short": _cut_target,
    "targets metadata changed without the key": _unsigned_targets,
    "foreign repository": _foreign_repository,
    "snapshot of another time": _mixed_snapshot,
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_what_the_keys_do_not_vouch_for_is_refused_and_the_old_model_runs_on(
    core: "fake.Core", device: "fake.Device", tmp_path: Path, attack: str
) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.2))
    ATTACKS[attack](core, tmp_path)
    assert device.want(second) == "refused"
    (report,) = device.updater.report()
    assert report.version == 1
    assert report.reason
    assert device.updater.annotate(frames(picture(250))).columns["model_version"] == [1]


def test_a_repository_that_is_expired_by_this_devices_clock_blocks_and_says_nothing_of_the_model(
    core: "fake.Core", device: "fake.Device", tmp_path: Path
) -> None:
    device.want(core.publish())
    second = core.publish(fake.tiny_model(0.2))
    _expired_timestamp(core, tmp_path)
    assert device.want(second) == "blocked"
    (report,) = device.updater.report()
    assert (report.version, report.refused) == (1, ())
    assert "timestamp.json is expired; this device's clock shows" in report.reason
    core.clock.ahead_s = 0.0
    core.publish(fake.tiny_model(0.3))
    device.clock.sleep(60)
    device.settle()
    assert (device.version, device.updater.report()[0].state) == (2, "active")


def test_metadata_that_go_back_are_refused(core: "fake.Core", device: "fake.Device", tmp_path: Path) -> None:
    first = core.publish()
    shutil.copytree(core.folder, tmp_path / "then")
    second = core.publish(fake.tiny_model(0.2))
    assert device.want(second) == "active"
    core.folder = tmp_path / "then"
    assert device.want(first, "back") == "refused"
    assert "BadVersionNumberError" in device.updater.report()[0].reason
    assert device.version == 2


def test_a_target_signed_as_another_model_is_refused(core: "fake.Core", device: "fake.Device") -> None:
    other = core.repository.publish("other", fake.tiny_model(), fake.IMAGE)
    disguised = replace(other, spec=msgspec.structs.replace(other.spec, name="bright"))
    assert device.want(disguised) == "refused"
    assert "signed as other version 1" in device.updater.report()[0].reason


def test_a_refused_model_is_taken_once_the_repository_is_put_right(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    _altered_target(core, Path())
    assert device.want(published) == "refused"
    core.tamper = lambda _request, found: found
    device.settle()
    assert device.version == 0
    device.clock.sleep(60)
    device.settle()
    assert device.version == 1


def test_a_core_that_is_away_is_no_refusal(core: "fake.Core", device: "fake.Device") -> None:
    published = core.publish()
    core.tamper = lambda _request, _found: None
    assert device.want(published) == "blocked"
    (report,) = device.updater.report()
    assert (report.version, report.refused) == (0, ())
    assert "no answer to 6 requests" in report.reason
