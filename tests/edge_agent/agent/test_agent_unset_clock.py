"""A device without a battery clock: captured in 1970, held until the clock is set, sent with what corrects the times."""

import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import nanoarrow as na
import nanoarrow.ipc
import pytest

from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.capture.transforms import build_transforms
from edge_agent.clock_quality import ClockWatch
from edge_agent.sources.api import SampleBatch
from edge_agent.spool.records import Append, Envelope, NewEnvelope
from edge_agent.spool.sealing import Seal
from edge_agent.spool.spool import Spool
from edge_agent.unset_clock import BootClock, ClockHold
from edge_agent.uplink.outbox import head_of
from schemas.contract import builtin_contract
from schemas.envelope import EnvelopeHead
from schemas.ids import DeviceId, StreamName
from tests.fakes.device import Device, eventually
from tests.fakes.fake_core import FakeCore
from tests.plant.broker import RunningBroker
from tests.plant.present import present

TELEMETRY = builtin_contract("vehicle_telemetry")
STREAM = StreamName("vehicle_telemetry")
TRUE_BOOT_MS = 1_780_000_000_000  # when the device really booted
HOUR_S = 3_600.0


class DeviceClock:
    """Counts from 1970 at boot until somebody sets it."""

    def __init__(self, up_s: float = 0.0) -> None:
        self.up_s = up_s
        self.base_ms = 0
        self.is_disciplined = True

    def now_ms(self) -> int:
        return self.base_ms + round(self.up_s * 1000)

    def monotonic_s(self) -> float:
        return self.up_s

    def sleep(self, seconds: float) -> None:
        self.up_s += seconds

    def set(self) -> None:
        self.base_ms = TRUE_BOOT_MS


class Room:
    """A spool, a clock, and an encoder that captures by it."""

    def __init__(
        self, folder: Path, clock: DeviceClock, boot: str = "boot-1", seal: Seal | None = None, free_wait_s: float = 0.0
    ) -> None:
        self.clock = clock
        self.boot_clock = BootClock(clock, boot, clock.monotonic_s, lambda: clock.is_disciplined)
        self.spool = Spool(folder / "spool", max_bytes=64 << 20, linger_ms=0, clock=clock, seal=seal)
        self.hold = ClockHold(self.boot_clock, self.spool, HOUR_S, clock, free_wait_s)
        self._transform = build_transforms(TELEMETRY, None, b"", ClockWatch(clock, lambda: True), None)
        self.encoder = Encoder(
            TELEMETRY, BatchLimits(1 << 18, 1 << 20), self.spool.put_object, references=self.boot_clock.references
        )

    def capture(self, count: int = 3) -> list[int]:
        times = [self.clock.now_ms() * 1000 + n for n in range(count)]
        batch = self._transform(SampleBatch(times, {"speed_mps": [1.0] * count}, agent_clock=True))
        envelopes = self.encoder.encode(batch, self.clock.now_ms() * 1000)
        self.spool.append(Append(STREAM, envelopes)).result()
        return times

    def offered(self) -> list[Envelope]:
        return self.spool.next_unsent(1 << 20)

    def shift_us(self, envelope: Envelope) -> int | None:
        assert envelope.clock is not None
        known = self.spool.boot_offset_us(envelope.clock.boot)
        return None if known is None else envelope.clock.shift_us(known)


@pytest.fixture
def room(tmp_path: Path) -> Room:
    return Room(tmp_path, DeviceClock(up_s=40.0))


def test_a_sample_of_an_unset_clock_waits_and_then_carries_the_offset(room: Room) -> None:
    room.capture()
    room.hold.step()
    assert room.offered() == []
    room.clock.sleep(100.0)
    room.clock.set()
    room.hold.step()
    (envelope,) = room.offered()
    assert room.shift_us(envelope) == TRUE_BOOT_MS * 1000
    room.spool.close()


YEAR_2000_MS = 946_684_800_000  # where real-time clocks begin again whose battery is dead


def corrected_us(room: Room) -> list[int]:
    """The event times as the core will have them, in the order of capture."""
    shifted = ((_times(envelope.body), room.shift_us(envelope) or 0) for envelope in room.offered())
    return [time_us + shift for times, shift in shifted for time_us in times]


def test_an_unset_clock_that_jumps_corrects_each_sample_by_the_time_it_was_read_from(room: Room) -> None:
    true_us = []
    for base_ms in (0, YEAR_2000_MS, 86_400_000):
        room.clock.base_ms = base_ms
        room.clock.sleep(5.0)
        true_us += [TRUE_BOOT_MS * 1000 + round(room.clock.up_s * 1e6) + n for n in range(3)]
        room.capture()
    room.clock.set()
    room.hold.step()
    assert corrected_us(room) == true_us
    room.spool.close()


def test_samples_that_were_read_before_and_after_an_unset_clock_jumped_share_no_envelope(room: Room) -> None:
    early_us = room.clock.now_ms() * 1000
    room.clock.base_ms = YEAR_2000_MS
    batch = SampleBatch([early_us, room.clock.now_ms() * 1000, early_us + 1], {"speed_mps": [1.0, 2.0, 3.0]}, agent_clock=True)
    room.spool.append(Append(STREAM, room.encoder.encode(batch, 0))).result()
    room.clock.set()
    room.hold.step()
    boot_us = TRUE_BOOT_MS * 1000 + 40_000_000
    assert corrected_us(room) == [boot_us, boot_us + 1, boot_us]
    room.spool.close()


def test_a_clock_that_falls_back_after_it_was_set_is_corrected_by_the_time_it_fell_to(room: Room) -> None:
    room.capture()
    room.clock.set()
    room.hold.step()
    room.clock.base_ms = YEAR_2000_MS
    room.capture()
    boot_us = TRUE_BOOT_MS * 1000 + 40_000_000
    assert corrected_us(room) == [boot_us, boot_us + 1, boot_us + 2] * 2
    room.spool.close()


def test_samples_of_a_set_clock_do_not_wait_behind_those_that_do(room: Room) -> None:
    room.capture()
    room.spool.append(Append(STREAM, (NewEnvelope(1, b"of a file with times of its own", "1.1.0"),))).result()
    assert [envelope.clock for envelope in room.offered()] == [None]
    room.spool.close()


def test_samples_from_before_and_after_the_clock_was_set_share_no_envelope(room: Room) -> None:
    times = [room.clock.now_ms() * 1000, TRUE_BOOT_MS * 1000, TRUE_BOOT_MS * 1000 + 1]
    encoder = Encoder(TELEMETRY, BatchLimits(1 << 18, 1 << 20), room.spool.put_object, references=room.boot_clock.references)
    made = encoder.encode(SampleBatch(times, {"speed_mps": [1.0, 2.0, 3.0]}, agent_clock=True), 0)
    assert [(envelope.count, envelope.clock is not None) for envelope in made] == [(1, True), (2, False)]
    encoded = encoder.encode(SampleBatch([5], {"speed_mps": [1.0]}), 0)
    assert encoded[0].clock is None, "a time that the observed device gave is not this clock's"
    room.spool.close()


def test_the_quality_of_an_unset_clock_is_none(room: Room) -> None:
    transform = build_transforms(TELEMETRY, None, b"", ClockWatch(room.clock, lambda: True), None)
    batch = SampleBatch([room.clock.now_ms() * 1000, TRUE_BOOT_MS * 1000], {}, agent_clock=True)
    assert transform(batch).columns["clock_quality"][0] == "none"
    room.spool.close()


def test_an_agent_that_restarts_after_the_clock_was_set_corrects_what_its_predecessor_captured(tmp_path: Path) -> None:
    clock = DeviceClock(up_s=40.0)
    first = Room(tmp_path, clock)
    first.capture()
    first.spool.close()
    clock.sleep(5.0)
    clock.set()
    second = Room(tmp_path, clock)
    second.hold.step()
    (envelope,) = second.offered()
    assert second.shift_us(envelope) == TRUE_BOOT_MS * 1000
    second.spool.close()


def test_the_offset_of_a_boot_outlives_the_boot(tmp_path: Path) -> None:
    clock = DeviceClock(up_s=40.0)
    first = Room(tmp_path, clock)
    first.capture()
    clock.set()
    first.hold.step()
    first.spool.close()
    second = Room(tmp_path, DeviceClock(up_s=3.0), boot="boot-2")
    second.capture()
    (envelope,) = second.offered()
    assert present(envelope.clock).boot == "boot-1"
    assert second.shift_us(envelope) == TRUE_BOOT_MS * 1000
    second.spool.close()


def test_what_a_boot_captured_that_never_saw_the_time_leaves_uncorrected(tmp_path: Path) -> None:
    first = Room(tmp_path, DeviceClock(up_s=40.0))
    first.capture()
    first.spool.close()
    clock = DeviceClock(up_s=3.0)
    clock.set()
    second = Room(tmp_path, clock, boot="boot-2")
    second.hold.step()
    (envelope,) = second.offered()
    assert second.shift_us(envelope) is None
    second.spool.close()


def test_a_device_that_never_gets_the_time_sends_after_the_configured_wait(room: Room) -> None:
    room.capture()
    room.clock.sleep(HOUR_S - 1)
    room.hold.step()
    assert (room.hold.is_holding, room.offered()) == (True, [])
    room.clock.sleep(2.0)
    room.hold.step()
    assert not room.hold.is_holding
    (envelope,) = room.offered()
    assert room.shift_us(envelope) is None
    room.spool.close()


def test_a_second_correction_of_the_clock_changes_no_offset_that_was_sent(room: Room) -> None:
    room.capture()
    room.clock.set()
    room.hold.step()
    room.clock.base_ms += 5_000
    room.hold.step()
    room.spool.note_boot_clock("boot-1", 1)
    (envelope,) = room.offered()
    assert room.shift_us(envelope) == TRUE_BOOT_MS * 1000
    room.spool.close()


def test_the_reference_is_under_the_checksum(room: Room, tmp_path: Path) -> None:
    room.capture()
    room.spool.close()
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as db:
        db.execute("UPDATE envelope SET clock_offset_us = clock_offset_us + 1")
    again = Room(tmp_path, room.clock, boot="boot-2")
    assert again.offered() == []
    eventually(lambda: again.spool.books()[0].dropped == {"corrupt": 3})
    again.spool.close()


def test_a_sealed_body_is_corrected_all_the_same(tmp_path: Path) -> None:
    pytest.importorskip("cryptography", reason="the encrypt extra is not installed")
    room = Room(tmp_path, DeviceClock(up_s=40.0), seal=Seal(bytes(range(32))))
    room.capture()
    room.clock.set()
    room.hold.step()
    (envelope,) = room.offered()
    assert room.shift_us(envelope) == TRUE_BOOT_MS * 1000
    room.spool.close()


def test_a_spool_of_the_version_before_opens_and_keeps_its_envelopes(tmp_path: Path) -> None:
    room = Room(tmp_path, DeviceClock(up_s=40.0))
    room.spool.append(Append(STREAM, (NewEnvelope(2, b"old", "1.1.0"),))).result()
    room.spool.close()
    with sqlite3.connect(tmp_path / "spool" / "spool.db") as db:
        db.execute("ALTER TABLE envelope DROP COLUMN boot")
        db.execute("ALTER TABLE envelope DROP COLUMN clock_offset_us")
    again = Room(tmp_path, room.clock)
    assert [envelope.body for envelope in again.offered()] == [b"old"]
    again.spool.close()


def test_over_a_real_broker_the_shift_travels_as_a_property(broker: RunningBroker, tmp_path: Path) -> None:
    with FakeCore(broker.host, broker.port) as core:
        room = Room(tmp_path / "captured", DeviceClock(up_s=40.0))
        times = room.capture()
        room.clock.set()
        room.hold.step()
        room.spool.close()
        (tmp_path / "captured" / "spool").rename(tmp_path / "spool")
        device = Device(tmp_path, broker)
        try:
            eventually(lambda: device.spooled() == 0)
        finally:
            device.close()
        ((head, body),) = core.landed
    assert (head.clock_boot, head.clock_shift_us) == ("boot-1", TRUE_BOOT_MS * 1000)
    assert head.created_us == TRUE_BOOT_MS * 1000 + times[0]
    assert _times(body) == times, "the body stays as it was captured"


LAST_SHUTDOWN_MS = TRUE_BOOT_MS - 30 * 86_400_000


def woken(tmp_path: Path, up_s: float = 40.0, *, base_ms: int = LAST_SHUTDOWN_MS, free_wait_s: float = 0.0) -> Room:
    """A device that goes on from the time of its last shutdown."""
    clock = DeviceClock(up_s)
    clock.base_ms, clock.is_disciplined = base_ms, False
    return Room(tmp_path, clock, free_wait_s=free_wait_s)


def synchronise(room: Room) -> None:
    room.clock.set()
    room.clock.is_disciplined = True
    room.hold.step()


def heads(room: Room) -> list[tuple[str | None, int | None]]:
    """What the envelopes in the spool tell the core of their clock, as the uplink puts it."""

    def head(envelope: Envelope) -> EnvelopeHead:
        known_us = room.spool.boot_offset_us(envelope.clock.boot) if envelope.clock else None
        return head_of(envelope, DeviceId("dev-a"), known_us, room.clock.now_ms())

    return [(found.clock_boot, found.clock_shift_us) for found in map(head, room.offered())]


def test_times_of_a_clock_that_woke_a_month_behind_are_corrected_once_it_is_synchronised(tmp_path: Path) -> None:
    room = woken(tmp_path)
    room.capture()
    room.hold.step()
    room.clock.sleep(100.0)
    synchronise(room)
    room.capture()
    assert heads(room) == [("free-boot-1", TRUE_BOOT_MS * 1000 - LAST_SHUTDOWN_MS * 1000), (None, None)]
    room.spool.close()


@pytest.mark.parametrize("ahead_ms", [0, 400, -900], ids=["right", "drifted", "behind"])
def test_a_free_clock_that_was_right_within_a_second_tells_nothing(tmp_path: Path, ahead_ms: int) -> None:
    room = woken(tmp_path, base_ms=TRUE_BOOT_MS + ahead_ms)
    room.capture()
    synchronise(room)
    assert heads(room) == [(None, None)]
    room.spool.close()


def test_a_clock_that_is_never_synchronised_sends_as_before_whoever_sets_it(tmp_path: Path) -> None:
    room = woken(tmp_path)
    room.capture()
    room.clock.set()
    room.capture()
    room.hold.step()
    assert heads(room) == [(None, None)] * 2
    room.spool.close()


def test_samples_wait_for_the_first_synchronisation_where_that_is_wanted_and_no_longer_than_wanted(tmp_path: Path) -> None:
    room = woken(tmp_path, free_wait_s=60.0)
    room.capture()
    room.hold.step()
    assert room.offered() == []
    room.clock.sleep(61.0)
    room.hold.step()
    assert heads(room) == [(None, None)]
    room.spool.close()


def test_samples_that_waited_leave_corrected(tmp_path: Path) -> None:
    room = woken(tmp_path, free_wait_s=60.0)
    times = room.capture()
    room.clock.sleep(20.0)
    synchronise(room)
    assert corrected_us(room) == [time_us + (TRUE_BOOT_MS - LAST_SHUTDOWN_MS) * 1000 for time_us in times]
    room.spool.close()


def test_an_agent_that_restarts_after_the_synchronisation_corrects_what_its_predecessor_captured(tmp_path: Path) -> None:
    first = woken(tmp_path)
    first.capture()
    first.spool.close()
    first.clock.set()
    first.clock.is_disciplined = True
    second = Room(tmp_path, first.clock)
    second.hold.step()
    assert heads(second) == [("free-boot-1", (TRUE_BOOT_MS - LAST_SHUTDOWN_MS) * 1000)]
    second.spool.close()


def test_a_clock_that_lost_its_server_later_is_not_held_to_run_free_again_even_after_a_restart(tmp_path: Path) -> None:
    room = woken(tmp_path)
    room.capture()
    synchronise(room)
    room.clock.is_disciplined = False
    room.clock.base_ms += 7_000
    room.capture()
    room.spool.close()
    again = Room(tmp_path, room.clock)
    again.capture()
    again.clock.base_ms -= 7_000
    again.clock.is_disciplined = True
    again.hold.step()
    assert [boot for boot, _ in heads(again)] == ["free-boot-1", None, None]
    again.spool.close()


def test_a_sample_that_was_read_before_the_jump_and_stored_after_it_is_corrected(tmp_path: Path) -> None:
    room = woken(tmp_path)
    read_us = room.clock.now_ms() * 1000
    synchronise(room)
    batch = SampleBatch([read_us, room.clock.now_ms() * 1000], {"speed_mps": [1.0, 2.0]}, agent_clock=True)
    room.spool.append(Append(STREAM, room.encoder.encode(batch, 0))).result()
    assert [boot for boot, _ in heads(room)] == ["free-boot-1", None]
    room.spool.close()


def test_an_unset_clock_that_is_then_set_but_not_synchronised_is_corrected_in_two_steps(tmp_path: Path) -> None:
    room = woken(tmp_path, base_ms=0)
    room.capture()
    room.clock.base_ms = LAST_SHUTDOWN_MS
    room.hold.step()
    room.capture()
    synchronise(room)
    first, second = heads(room)
    assert first == ("boot-1", LAST_SHUTDOWN_MS * 1000), "the first offset of a boot stays: it may have been sent"
    assert second == ("free-boot-1", (TRUE_BOOT_MS - LAST_SHUTDOWN_MS) * 1000)
    room.spool.close()


def _times(body: bytes) -> list[int]:
    read: Callable[[bytes], Any] = na.ipc.InputStream.from_readable
    return [round(value.timestamp() * 1e6) for value in na.ArrayStream(read(body)).read_all().child(0).to_pylist()]
