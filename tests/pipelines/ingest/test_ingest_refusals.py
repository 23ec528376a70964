"""The core tells a device what it refuses of its streams, and alarms where it refuses everything."""

from contextlib import closing
from pathlib import Path

import pyarrow as pa
import pytest

from catchment.runtime.clock import SystemClock
from edge_agent.spool.spool import Spool
from pipelines.bridge.rows import LandingRow
from pipelines.ingest.quarantine import Request, write_request
from pipelines.lake.books import Counts
from pipelines.lake.lake import lake_at
from pipelines.lake.ledger import Ledger
from pipelines.status.health import assess
from pipelines.status.server import exposition
from pipelines.status.survey import MAX_NAMED, devices_of, survey
from schemas.receipts import ALL_REFUSED_FROM, RefusedStream, decode_receipt
from tests.plant.core import Core, MakeEnvelope

STREAM = "vehicle_telemetry"


def refused(core: Core, device: str = "car-1") -> dict[str, RefusedStream]:
    return decode_receipt(core.mailbox.messages[f"catchment/down/{device}/receipts"]).refused


def alarms(core: Core) -> list[str]:
    return [alarm.text for alarm in assess(survey(lake_at(core.root), 0)).found if alarm.kind == "refused"]


def too_fast(count: int) -> dict[str, pa.Array]:
    return {"steering_deg": pa.array([float("nan")] * count)}


def test_a_receipt_tells_what_is_refused_and_the_commonest_reason(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 6, **too_fast(6)), envelope(6, 3, body=b"garbage"), envelope(9, 20)])
    core.run()
    assert refused(core) == {STREAM: RefusedStream(9, 20, 0, "steering_deg: NaN or infinite")}
    assert refused(core)[STREAM].share == 9 / 29
    assert alarms(core) == []


def test_a_stream_that_is_all_refused_is_an_alarm_until_one_is_accepted(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 2, **too_fast(2)), envelope(0, 5, device="car-2")])
    core.run()
    assert refused(core)[STREAM].is_total
    assert alarms(core) == [
        f"stream {STREAM} of car-1: the core refuses all it sends (2 samples in a row: steering_deg: NaN or infinite)"
    ]
    text = exposition(survey(lake_at(core.root), 0))
    assert "catchment_refused_streams 1" in text
    assert 'catchment_alarms_of_kind{kind="refused"} 1' in text
    core.landing.seal([envelope(2, 1)])
    core.run()
    assert (alarms(core), refused(core)[STREAM].is_total) == ([], False)


def test_a_stream_that_was_good_for_long_alarms_once_it_is_refused_for_a_while(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 500)])
    core.run()
    few = ALL_REFUSED_FROM - 1
    core.landing.seal([envelope(500, few, **too_fast(few))])
    core.run()
    assert (alarms(core), refused(core)[STREAM].in_row) == ([], few)
    core.landing.seal([envelope(600, 1, **too_fast(1))])
    core.run()
    assert len(alarms(core)) == 1
    assert refused(core)[STREAM].share == 1.0


def test_a_replay_or_a_discard_ends_the_alarm(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 2, version="9.9.9"), envelope(0, 3, device="car-2", body=b"garbage")])
    core.run()
    assert len(alarms(core)) == 2
    ids = {row["device"]: row["id"] for row in core.rows("quarantine")}
    write_request(lake_at(core.root), Request("replay", (ids["car-1"],), 1, "1.0.0"))
    write_request(lake_at(core.root), Request("discard", (ids["car-2"],), 2))
    loop = core.run()
    assert (alarms(core), refused(core), refused(core, "car-2")) == ([], {}, {})
    assert not loop.ledger.unbalanced()


def test_refusals_of_several_streams_are_heard_and_end_one_by_one_over_restarts_of_both_sides(
    core: Core, envelope: MakeEnvelope, tmp_path: Path
) -> None:
    def heard() -> dict[str, bool]:
        """By a device that is started anew, from the retained receipt."""
        with closing(Spool(tmp_path / "spool", max_bytes=64 << 20, linger_ms=0, clock=SystemClock())) as spool:
            spool.settle(decode_receipt(core.mailbox.messages["catchment/down/car-1/receipts"])).result()
        with closing(Spool(tmp_path / "spool", max_bytes=64 << 20, linger_ms=0, clock=SystemClock())) as spool:
            return {stream: one.is_total for stream, one in spool.refused().items()}

    frames, others = (envelope(0, count, stream=name, body=b"?") for name, count in (("camera_frame", 20), ("s1", 1)))
    core.landing.seal([envelope(0, 12, **too_fast(12)), frames, others])
    core.run()
    assert heard() == {STREAM: True, "camera_frame": True, "s1": True}
    assert alarms(core)[0].endswith("and 2 more of its streams")
    core.landing.seal([envelope(12, 1), envelope(20, 3, stream="camera_frame", body=b"?")])
    core.run()
    assert heard() == {STREAM: False, "camera_frame": True, "s1": True}
    assert alarms(core)[0].endswith("and 1 more of its streams")
    ids = tuple(row["id"] for row in core.rows("quarantine") if row["stream"] == "camera_frame")
    write_request(lake_at(core.root), Request("discard", ids, 1))
    core.run()
    assert heard() == {STREAM: False, "s1": True}
    assert [text.split(" of ")[0] for text in alarms(core)] == ["stream s1"]


def test_messages_without_a_stream_are_reported_to_their_device(core: Core) -> None:
    core.landing.seal([LandingRow(1, "refused", "catchment/up/car-1/x", b"?", "car-1", refusal="epoch 'x' must be a number")])
    core.run()
    assert refused(core) == {"": RefusedStream(1, 0, 1, "epoch '…' must be a number")}
    assert alarms(core) == ["car-1: the core refuses all it sends (1 samples in a row: epoch '…' must be a number)"]


def test_values_of_samples_are_in_no_reason_that_leaves_the_quarantine(core: Core, envelope: MakeEnvelope) -> None:
    canary = "canary4711"
    body = f'[{{"event_time": "2026-01-01T00:00:00Z", "speed_mps": "{canary}", "{canary}": 4711.25}}]'.encode()
    core.landing.seal([envelope(0, 1, body=body, content_type="application/json")])
    loop = core.run()
    (row,) = core.rows("quarantine")
    assert row["reason"]
    reasons = [*refused(core)[STREAM].reason, *loop.ledger.whole().books["reason"].to_pylist(), *alarms(core)]
    assert not any(canary in reason or "4711" in reason for reason in reasons), row["reason"]


@pytest.mark.parametrize("order", [("a", "b"), ("b", "a")])
def test_the_commonest_reason_over_many_runs_wins_whatever_comes_last(order: tuple[str, str]) -> None:
    ledger = Ledger()
    key = ("car-1", "s")
    tallies = [{"often": 9}, {"seldom": 2}, {"often": 4}, {order[0]: 3, order[1]: 1}]
    for run, tally in enumerate(tallies, 1):
        total = sum(tally.values())
        ledger = ledger.after(run, {}, {key: Counts(received=total, quarantined=total)}, {}, reasons={key: tally})
    assert ledger.whole().books["reason"].to_pylist() == ["often"]


def test_a_hostile_device_with_many_refused_streams_hides_no_other_device() -> None:
    keys = [*(("car-0", f"s{number}") for number in range(500)), ("car-1", "frames")]
    counts = {key: Counts(received=3, quarantined=3) for key in keys}
    found = devices_of(Ledger().after(1, {}, counts, {}))
    assert [(one.device, one.stream, one.others) for one in found.refused] == [("car-0", "s0", 499), ("car-1", "frames", 0)]
    assert (found.refused_count, found.refused_streams) == (2, 501)
    many = {(f"car-{number}", "s"): Counts(received=3, quarantined=3) for number in range(500)}
    found = devices_of(Ledger().after(1, {}, many, {}))
    assert (len(found.refused), found.refused_count) == (MAX_NAMED, 500)
