import hashlib
import json
from pathlib import Path

import pyarrow as pa
import pytest
import zstandard

from pipelines.bridge.rows import LandingRow
from pipelines.errors import CorruptLakeError, RefusedError, RetryLaterError
from pipelines.ingest.loop import only_loop
from pipelines.lake.lake import lake_at
from pipelines.lake.payload import read_payload
from schemas.receipts import decode_receipt
from schemas.reported import DroppedRange, EpochReport, Reported, encode_reported
from tests.plant.core import AsIpc, Core, MakeEnvelope

STREAM = "streams/vehicle_telemetry"


def keys(core: Core) -> list[tuple[str, int, int]]:
    return sorted((row["device"], row["epoch"], row["seq"]) for row in core.rows(STREAM))


def test_every_sample_becomes_one_row_and_the_device_hears_of_it(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10), envelope(10, 10), envelope(0, 5, device="car-2")])
    loop = core.run()
    assert keys(core) == [("car-1", 7, seq) for seq in range(20)] + [("car-2", 7, seq) for seq in range(5)]
    receipt = decode_receipt(core.mailbox.messages["catchment/down/car-1/receipts"])
    assert receipt.run == 1
    assert receipt.settled == {"vehicle_telemetry": {"7": [(0, 20)]}}
    assert not loop.ledger.unbalanced()


def test_duplicates_within_and_across_runs_are_counted_and_make_no_row(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10), envelope(5, 10)])
    core.run()
    core.landing.seal([envelope(0, 30), envelope(12, 3)])
    loop = core.run()
    assert keys(core) == [("car-1", 7, seq) for seq in range(30)]
    books = loop.ledger.books["car-1", "vehicle_telemetry"]
    assert (books.received, books.committed, books.duplicate) == (53, 30, 23)


def test_a_malformed_envelope_goes_to_quarantine_whole_and_leaves_the_others_alone(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc
) -> None:
    good = envelope(0, 10)
    body = bytes(good.payload)
    two = pa.BufferOutputStream()
    batch = pa.record_batch({"event_time": pa.array([0], pa.timestamp("us", "UTC")), "speed_mps": [1.0]})
    with pa.ipc.new_stream(two, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    bad = {
        "decode:not a valid Arrow": envelope(10, 10, body=body[:-300]),
        "decode:the head says 11": envelope(20, 11, body=body),
        "decode:the Arrow stream holds more": envelope(40, 1, body=two.getvalue().to_pybytes()),
        "decode:not zstd": envelope(50, 10, body=body, encoding="zstd"),
        "contract:unknown column": envelope(60, 10, body=as_ipc(pa.record_batch({"event_time": [1] * 10, "x": [1] * 10}))),
        "contract:the core has no contract": envelope(70, 10, version="9.9.9"),
        "decode:zstd body": envelope(80, 10, body=zstandard.compress(b"\0" * 300_000_000), encoding="zstd"),
    }
    core.landing.seal([good, *bad.values(), envelope(90, 10)])
    loop = core.run()
    assert keys(core) == [("car-1", 7, seq) for seq in (*range(10), *range(90, 100))]
    refusals = [f"{row['stage']}:{row['reason']}" for row in core.rows("quarantine")]
    for start in bad:
        assert any(line.startswith(start) for line in refusals), (start, refusals)
    assert sum(row["count"] for row in core.rows("quarantine")) == 62
    assert not loop.ledger.unbalanced()
    assert {row["body"] for row in core.rows("quarantine")} == {row.payload for row in bad.values()}


def test_a_value_the_contract_refuses_costs_only_its_row_and_can_be_read_back(core: Core, envelope: MakeEnvelope) -> None:
    bad = pa.array([1.0, float("nan"), 3.0, float("inf"), 5.0])
    core.landing.seal([envelope(100, 5, steering_deg=bad), envelope(105, 5)])
    core.run()
    assert keys(core) == [("car-1", 7, seq) for seq in (100, 102, 104, 105, 106, 107, 108, 109)]
    row = core.rows("quarantine")[0]
    assert (row["stage"], row["seq"], row["count"], row["body_format"]) == ("contract", 101, 2, "arrow")
    assert pa.ipc.open_stream(row["body"]).read_all().column("seq").to_pylist() == [101, 103]


def test_json_bodies_go_through_the_same_contract(core: Core, envelope: MakeEnvelope) -> None:
    rows = [{"event_time": "2026-01-01T00:00:00Z", "speed_mps": 1.5}, {"event_time": "nonsense", "speed_mps": 2}]
    twice = b'{"event_time": "2026-01-01T00:00:00Z", "speed_mps": 1, "speed_mps": 2}'
    core.landing.seal(
        [
            envelope(0, 2, body=json.dumps(rows).encode(), content_type="application/json"),
            envelope(2, 1, body=twice, content_type="application/json"),
            envelope(3, 1, body=b"{", content_type="application/json"),
        ]
    )
    loop = core.run()
    assert keys(core) == [("car-1", 7, 0)]
    assert sorted(row["seq"] for row in core.rows("quarantine")) == [1, 2, 3]
    assert not loop.ledger.unbalanced()


def test_refused_messages_and_reports_that_are_none_are_kept(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal(
        [
            LandingRow(1, "refused", "catchment/up/Bad Device/x", b"?", refusal="device id malformed"),
            LandingRow(1, "reported", "catchment/reported/car-1", b"{", "car-1"),
        ]
    )
    loop = core.run()
    assert sorted(row["stage"] for row in core.rows("quarantine")) == ["head", "report"]
    assert not loop.ledger.unbalanced()


def test_what_a_device_dropped_is_settled_unless_it_arrived(core: Core, envelope: MakeEnvelope) -> None:
    epoch = EpochReport("vehicle_telemetry", 7, 30, closed=True, dropped=(DroppedRange(5, 15, "quota"),))
    report = Reported("car-1", 0, "1", epochs=(epoch,))
    core.landing.seal([envelope(0, 10), LandingRow(1, "reported", "catchment/reported/car-1", encode_reported(report), "car-1")])
    loop = core.run()
    books = loop.ledger.books["car-1", "vehicle_telemetry"]
    assert (books.committed, books.dropped) == (10, 5)
    receipt = decode_receipt(core.mailbox.messages["catchment/down/car-1/receipts"])
    assert receipt.settled == {"vehicle_telemetry": {"7": [(0, 15)]}}


def test_an_epoch_its_device_forgot_leaves_the_receipt_and_still_guards_against_copies(
    core: Core, envelope: MakeEnvelope
) -> None:
    core.landing.seal([envelope(0, 10, epoch=1), envelope(0, 10, epoch=2)])
    report = Reported("car-1", 0, "1", epochs=(EpochReport("vehicle_telemetry", 2, 10, closed=False),))
    core.run()
    core.landing.seal([LandingRow(1, "reported", "catchment/reported/car-1", encode_reported(report), "car-1")])
    core.run()
    receipt = decode_receipt(core.mailbox.messages["catchment/down/car-1/receipts"])
    assert list(receipt.settled["vehicle_telemetry"]) == ["2"]
    core.landing.seal([envelope(0, 10, epoch=1)])
    core.run()
    assert len(keys(core)) == 20


def test_payloads_lie_in_a_shard_and_a_false_hash_is_refused(core: Core, envelope: MakeEnvelope, as_ipc: AsIpc) -> None:
    payloads = [b"one", b"two!", b"three"]
    digests = [hashlib.sha256(body).hexdigest() for body in payloads]
    digests[1] = digests[0]
    large, missing = b"L" * 100, hashlib.sha256(b"never came").hexdigest()
    (core.root / "objects").mkdir()
    (core.root / "objects" / hashlib.sha256(large).hexdigest()).write_bytes(large)
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000] * 5).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/jpeg"] * 5,
            "payload": pa.array([*payloads, None, None], pa.binary()),
            "payload_sha256": [*digests, hashlib.sha256(large).hexdigest(), missing],
        }
    )
    core.landing.seal([envelope(0, 5, stream="camera_frame", body=as_ipc(batch))])
    core.run()
    rows = sorted(core.rows("streams/camera_frame"), key=lambda row: row["seq"])
    assert [row["seq"] for row in rows] == [0, 2, 3]
    read = [
        read_payload(
            lake_at(core.root), row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"] or 0
        )
        for row in rows
    ]
    assert read == [b"one", b"three", large]
    assert sorted((row["stage"], row["seq"]) for row in core.rows("quarantine")) == [("object", 4), ("payload", 1)]


def test_a_second_loop_on_the_same_lake_is_refused(core: Core) -> None:
    with only_loop(lake_at(core.root)), pytest.raises(RefusedError, match="another run loop"), only_loop(lake_at(core.root)):
        pass


def test_a_rotten_segment_is_set_aside_and_the_others_go_on(core: Core, envelope: MakeEnvelope) -> None:
    rotten = core.landing.seal([envelope(0, 10)])
    body = bytearray(rotten.read_bytes())
    body[len(body) // 2] ^= 1
    rotten.write_bytes(body)
    core.landing.seal([envelope(10, 10)])
    core.run()
    assert keys(core) == [("car-1", 7, seq) for seq in range(10, 20)]
    assert [row["stage"] for row in core.rows("quarantine")] == ["landing"]
    receipt = decode_receipt(core.mailbox.messages["catchment/down/car-1/receipts"])
    assert receipt.settled == {"vehicle_telemetry": {"7": [(10, 20)]}}


def test_receipts_wait_for_the_broker_without_holding_commits_up(core: Core, envelope: MakeEnvelope) -> None:
    core.mailbox.is_away = True
    core.landing.seal([envelope(0, 10)])
    loop = core.run()
    assert len(keys(core)) == 10
    assert loop.receipts_pending
    core.mailbox.is_away = False
    loop.step()
    assert core.mailbox.messages


def test_a_lost_ledger_stops_the_loop_with_a_word(core: Core, envelope: MakeEnvelope) -> None:
    core.landing.seal([envelope(0, 10)])
    core.run()
    next(Path(core.root / "runs").glob("*.ledger.parquet")).unlink()
    with pytest.raises(CorruptLakeError, match="restore it"):
        core.loop()


def test_a_newer_contract_version_adds_its_columns(core: Core, envelope: MakeEnvelope, tmp_path: Path) -> None:
    core.landing.seal([envelope(0, 10)])
    core.run()
    import msgspec

    from pipelines.ingest.plan import Pins
    from pipelines.ingest.run import stream_shape
    from pipelines.lake.table import ensure_table
    from schemas.contract import Column, ColumnType, PiiClass, builtin_contract

    old = builtin_contract("vehicle_telemetry")
    extra = (Column("lidar_m", ColumnType.FLOAT64), Column("driver", ColumnType.INT64, pii=PiiClass.FACE))
    new = msgspec.structs.replace(old, version="1.1.0", columns=(*old.columns, *extra))
    schema, private = stream_shape("vehicle_telemetry", Pins((old, new), ()))
    table = ensure_table(lake_at(core.root), STREAM, schema, private)
    assert {"lidar_m", "driver"} <= {field.name for field in table.schema().fields}
    shown = table.metadata().configuration["delta.dataSkippingStatsColumns"].split(",")
    assert "lidar_m" in shown
    assert not {"driver", "latitude_deg"} & set(shown)
    assert len(core.rows(STREAM)) == 10


def test_a_segment_that_rots_after_it_was_planned_is_planned_anew(core: Core, envelope: MakeEnvelope) -> None:
    rotten = core.landing.seal([envelope(0, 10)])
    core.landing.seal([envelope(10, 10)])
    loop = core.loop()
    assert loop.next_plan() is not None
    body = bytearray(rotten.read_bytes())
    body[len(body) // 2] ^= 1
    rotten.write_bytes(body)
    with pytest.raises(RetryLaterError, match="planned again"):
        loop.step()
    assert loop.step()
    assert keys(core) == [("car-1", 7, seq) for seq in range(10, 20)]


def test_an_image_of_a_contract_with_chips_is_cut_and_one_that_cannot_be_stays_a_row(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc
) -> None:
    import numpy as np
    import tifffile

    path = core.root.parent / "slide.tif"
    tifffile.imwrite(path, np.zeros((600, 500, 3), np.uint8), tile=(256, 256), compression="jpeg", photometric="rgb")
    payloads = [path.read_bytes(), b"no picture"]
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000] * 2).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/tiff"] * 2,
            "payload": pa.array(payloads, pa.binary()),
            "payload_sha256": [hashlib.sha256(body).hexdigest() for body in payloads],
        }
    )
    core.landing.seal([envelope(0, 2, stream="slide", body=as_ipc(batch))])
    loop = core.run()
    assert len(core.rows("streams/slide")) == 2
    chips = core.rows("streams/slide_chips")
    assert {row["seq"] for row in chips} == {0}
    assert len(chips) == 6
    assert [(row["stage"], row["seq"], row["count"]) for row in core.rows("quarantine")] == [("chips", 1, 0)]
    assert not loop.ledger.unbalanced()
