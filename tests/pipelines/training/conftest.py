"""A small lake with a camera stream and a telemetry stream, made the way runs make it."""

import hashlib
import io
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from deltalake import write_deltalake
from PIL import Image

from pipelines.lake.payload import write_payload_shard

START = datetime(2026, 1, 1, tzinfo=UTC)
DEVICES = 12
FRAMES = 20
SHARD = "payload/camera_frame/000000000001-0.parquet"


def jpeg(seed: int) -> bytes:
    pixels = np.random.default_rng(seed).integers(0, 255, (24, 32, 3), np.uint8)
    body = io.BytesIO()
    Image.fromarray(pixels).save(body, "JPEG")
    return body.getvalue()


def key_columns(rows: list[tuple[str, int]]) -> dict[str, pa.Array]:
    times = pa.array([datetime(2026, 1, 1, tzinfo=UTC)] * len(rows), pa.timestamp("us", "UTC"))
    return {
        "device": pa.array([device for device, _ in rows], pa.string()),
        "epoch": pa.array([5] * len(rows), pa.int64()),
        "seq": pa.array([seq for _, seq in rows], pa.int64()),
        "event_time": times,
        "received_at": times,
        "run": pa.array([1] * len(rows), pa.int64()),
        "contract_version": pa.array(["1.0.0"] * len(rows), pa.string()),
    }


def tag_columns(tags: list[list[str]]) -> dict[str, pa.Array]:
    return {
        "tags": pa.array(tags, pa.list_(pa.string())),
        "tag_rules": pa.array([["night@abc123"] * len(row) for row in tags], pa.list_(pa.string())),
    }


@pytest.fixture
def lake(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    keys = [(f"cam-{d}", s) for d in range(DEVICES) for s in range(FRAMES)]
    bodies = [jpeg(i) if i % 50 else b"" for i in range(len(keys))]
    digests = pa.array([hashlib.sha256(body).hexdigest() for body in bodies], pa.string())
    payload = pa.array(bodies, pa.binary())
    base = key_columns(keys)
    shard = write_payload_shard(
        root / SHARD,
        pa.table(
            {"device": base["device"], "epoch": base["epoch"], "seq": base["seq"], "payload_sha256": digests, "payload": payload}
        ),
    )
    count = len(keys)
    rows = pa.table({
        **base,
        "brightness": pa.array(np.arange(count) % 7 * 10.0),
        "label": pa.array([None if i % 5 == 0 else f"class-{i % 3}" for i in range(count)], pa.string()),
        "lane": pa.array([None if i % 9 == 0 else i for i in range(count)], pa.int32()),
        **tag_columns([["dark"] if i % 7 < 3 else [] for i in range(count)]),
        "payload_shard": pa.array([None if i == 3 else SHARD for i in range(count)], pa.string()),
        "payload_row": pa.array(range(count), pa.int32()),
        "payload_offset": shard.offsets,
        "payload_length": shard.lengths,
        "payload_sha256": digests,
    })  # fmt: skip
    write_deltalake(root / "streams/camera_frame", rows)
    trips = [(f"car-{d}", s) for d in range(30) for s in range(100)]
    write_deltalake(
        root / "streams/vehicle_telemetry",
        pa.table(
            {**key_columns(trips), "speed": pa.array(np.arange(len(trips)) % 140 * 1.0), **tag_columns([[] for _ in trips])}
        ),
    )
    return root


def drive(device: str, times_s: list[float], *, epoch: int = 1, first_seq: int = 0, **columns: list[object]) -> pa.Table:
    count = len(times_s)
    return pa.table({
        "device": pa.array([device] * count, pa.string()),
        "epoch": pa.array([epoch] * count, pa.int64()),
        "seq": pa.array(range(first_seq, first_seq + count), pa.int64()),
        "event_time": pa.array([START + timedelta(seconds=at) for at in times_s], pa.timestamp("us", "UTC")),
        **{name: pa.array(values) for name, values in columns.items()},
        **tag_columns([["fast"] if at >= 5 else [] for at in times_s]),
    })  # fmt: skip


@pytest.fixture
def driven(tmp_path: Path) -> Path:
    root = tmp_path / "lake"
    times = [number / 20 for number in range(600)]
    parts = [
        drive(
            f"car-{car}",
            times,
            speed=[car * 100.0 + at for at in times],
            yaw=[None if 10 <= at < 13 else at for at in times],
            event=[["idle", "turn", "brake"][int(at) % 3] for at in times],
        )
        for car in range(6)
    ]
    write_deltalake(root / "streams/telemetry", pa.concat_tables(parts))
    return root
