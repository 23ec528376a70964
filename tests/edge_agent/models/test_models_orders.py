"""Which model runs is ordered by the director alone: the broker's keeper cannot bring a still-signed older version back."""

from pathlib import Path

import pytest

from edge_agent.models.wanted import open_orders
from pipelines.rollout.repository import PublishedModel
from schemas.rollout import Desired, DesiredModels, encode_desired
from schemas.signed_document import Addressees
from tests.fakes import model_repository as fake
from tests.fakes.director import FakeDirector, OrderTaker, wanted
from tests.fakes.model_repository import Core, Device, frames, picture


@pytest.fixture
def director() -> FakeDirector:
    return FakeDirector()


@pytest.fixture
def device(core: "fake.Core", director: FakeDirector, tmp_path: Path) -> "fake.Device":
    return ordered(core, director, tmp_path)


def ordered(core: "fake.Core", director: FakeDirector, folder: Path) -> "fake.Device":
    taker = OrderTaker(folder / "state", director.public_key, device="cam-1")
    return fake.Device(core, folder / "state", orders=taker.inbox)


def desire(model: PublishedModel) -> Desired:
    return Desired("r", model.spec.name, model.spec.version, model.target, 1)


def order(director: FakeDirector, counter: int, *models: Desired) -> bytes:
    return director.order(counter, models=models, to=Addressees(devices=("cam-1",)))


def hand_in(device: "fake.Device", body: bytes) -> int:
    device.updater.on_desired(body)
    device.settle()
    return device.version


@pytest.mark.slow
def test_an_older_version_that_is_still_signed_cannot_be_ordered_by_the_brokers_keeper(
    core: Core, director: FakeDirector, device: Device, tmp_path: Path
) -> None:
    first, second = desire(core.publish()), desire(core.publish(fake.tiny_model(0.1)))
    old, new = order(director, 10, first), order(director, 11, second)
    assert hand_in(device, old) == 1
    assert hand_in(device, new) == 2
    assert hand_in(device, old) == 2  # replayed
    assert hand_in(device, encode_desired(first)) == 2  # made up, as before
    assert hand_in(device, FakeDirector().order(12, models=(first,), to=Addressees(devices=("cam-1",)))) == 2
    again = ordered(core, director, tmp_path)  # offline, the retained message deleted or replaced
    assert hand_in(again, b"") == 2
    assert hand_in(again, old) == 2
    assert again.updater.annotate(frames(picture(250))).columns["model_version"] == [2]
    assert hand_in(again, order(director, 13, first)) == 1  # the director may


@pytest.mark.parametrize("late", [[10], [10, 9], [9, 10]])
def test_a_halt_stands_when_older_orders_arrive_right_after_it(
    core: Core, director: FakeDirector, device: Device, late: list[int]
) -> None:
    first = desire(core.publish())
    device.updater.on_desired(order(director, 11))  # nothing is to run
    for counter in late:
        device.updater.on_desired(order(director, counter, first))
    device.settle()
    assert device.version == 0


def test_of_many_orders_at_once_the_last_to_come_are_kept(director: FakeDirector, tmp_path: Path) -> None:
    taker = OrderTaker(tmp_path / "state", director.public_key, device="cam-1")
    for counter in range(1, 101):
        taker.inbox.hand_in(order(director, counter))
    admitted = taker.inbox.take_admitted()
    assert admitted is not None
    assert admitted.document.counter == 100
    assert taker.inbox.take_admitted() is None
    assert taker.inbox.report().refused == 0


def test_of_several_models_a_device_takes_its_own(core: Core, director: FakeDirector, device: Device) -> None:
    ours = desire(core.publish())
    assert hand_in(device, order(director, 1, wanted(4, "faces"), ours, wanted(9, "defects"))) == 1


def test_an_order_without_our_model_ends_what_was_wanted_and_stops_nothing(
    core: Core, director: FakeDirector, device: Device
) -> None:
    first, second = desire(core.publish()), desire(core.publish(fake.tiny_model(0.1)))
    assert hand_in(device, order(director, 1, first)) == 1
    core.tamper = lambda _request, _found: None
    device.updater.on_desired(order(director, 2, second))
    assert hand_in(device, order(director, 3)) == 1
    core.tamper = lambda _request, found: found
    device.clock.sleep(100_000)
    device.settle()
    assert device.version == 1
    assert device.updater.report()[0].state == "active"


def test_without_a_directors_key_unsigned_orders_are_followed_for_this_release(core: Core, tmp_path: Path) -> None:
    device = fake.Device(core, tmp_path / "state")
    published = core.publish()
    assert device.want(published) == "active"
    second = desire(core.publish(fake.tiny_model(0.1)))
    from schemas.rollout import encode_signed_desired
    from schemas.signed_document import decode_message

    signed = decode_message(order(FakeDirector(), 7, second))
    assert hand_in(device, encode_signed_desired(signed, DesiredModels((second,)))) == 2


def test_a_device_is_configured_to_follow_signed_orders_by_the_directors_table(tmp_path: Path) -> None:
    from catchment.runtime.clock import SystemClock
    from edge_agent.config import load_agent_config

    path = tmp_path / "agent.toml"
    path.write_text('device = "cam-1"\nstate_dir = "state"\n')
    assert open_orders(load_agent_config(path), SystemClock()) is None
    path.write_text(f'device = "cam-1"\nstate_dir = "state"\n[director]\npublic_keys = ["{"0" * 64}"]\n')
    assert open_orders(load_agent_config(path), SystemClock()) is not None
