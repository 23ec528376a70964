"""Mutated input, by the thousand, through the whole of a run: no run is lost, every sample is a row or in quarantine.

400 inputs per format in the fast suite, 5,000 in the slow one; `make fuzz` takes 100,000 (CATCHMENT_FUZZ).
"""

import json
import os
import random
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pytest
import zstandard

from catchment.runtime.clock import SystemClock
from pipelines.bridge.landing_writer import Partition, Reader
from pipelines.bridge.parts import Part
from pipelines.bridge.rows import KIND_REFUSED, BrokerMessage, LandingRow, Numberer
from pipelines.config import CoreConfig
from pipelines.ingest.graph import worker_pool
from pipelines.ingest.loop import RunLoop
from pipelines.runners.engine import Engine
from schemas.topics import Topics
from tests.plant.core import AsIpc, Core, MakeEnvelope

COUNT = int(os.environ.get("CATCHMENT_FUZZ", "5000"))
PIECE = 2_500
SAMPLES = 4
US = pa.timestamp("us", "UTC")


def mutate(rng: random.Random, body: bytes) -> bytes:
    """A few of: a bit turned, a byte set, a word of extremes, a piece cut out, doubled, moved or taken from the end."""
    found = bytearray(body)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        at = rng.randrange(max(1, len(found)))
        length = rng.choice((1, 2, 4, 8, rng.randrange(1, 64)))
        match rng.randrange(7):
            case 0:
                found[at : at + 1] = bytes([(found[at] if found else 0) ^ 1 << rng.randrange(8)])
            case 1:
                found[at : at + 1] = bytes([rng.randrange(256)])
            case 2:
                found[at : at + 4] = rng.choice((0, 1, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)).to_bytes(4, "little")
            case 3:
                del found[at : at + length]
            case 4:
                found[at:at] = found[at : at + length]
            case 5:
                piece = found[at : at + length]
                del found[at : at + length]
                there = rng.randrange(len(found) + 1)
                found[there:there] = piece
            case _:
                del found[len(found) - min(len(found), length) :]
    return bytes(found)


def arrow_seeds() -> list[bytes]:
    times = pa.array([1_790_000_000_000_000 + at for at in range(SAMPLES)]).cast(US)
    speed = pa.array([1.0, None, 3.0, 4.0])
    text = pa.array(["a", "bb", None, "x" * 30])
    columns: list[dict[str, Any]] = [
        {"event_time": times, "speed_mps": speed},
        {"event_time": times, "speed_mps": speed, "road": text},
        {"event_time": times, "road": text.dictionary_encode()},
        {"event_time": times, "road": text.cast(pa.string_view())},
        {"event_time": times, "steering_deg": pa.array([1, 2, 3, 4], pa.int32()), "flags": pa.array([[1], [], None, [2, 3]])},
    ]
    seeds = []
    for one in columns:
        for codec in (None, "lz4", "zstd"):
            batch = pa.record_batch(one)
            sink = pa.BufferOutputStream()
            with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=codec)) as writer:
                writer.write_batch(batch)
            seeds.append(sink.getvalue().to_pybytes())
    return seeds


def json_seeds() -> list[bytes]:
    row = {"event_time": "2026-01-01T00:00:00.5Z", "speed_mps": 1.5, "steering_deg": -3}
    return [
        json.dumps([row] * SAMPLES).encode(),
        json.dumps(
            [{**row, "speed_mps": None}, {"event_time": 1_790_000_000_000_000}, {**row, "road": "ünïcode \u0000"}, row]
        ).encode(),
        b"[" + b",".join([b'{"event_time":"2026-01-01T00:00:00Z","speed_mps":1e309}'] * SAMPLES) + b"]",
        b"[" * 50 + b"]" * 50,
    ]


FORMATS: dict[str, tuple[Callable[[], list[bytes]], str, str]] = {
    "arrow": (arrow_seeds, "application/vnd.apache.arrow.stream", ""),
    "json": (json_seeds, "application/json", ""),
    "zstd": (lambda: [zstandard.compress(seed) for seed in arrow_seeds()], "application/vnd.apache.arrow.stream", "zstd"),
}


@pytest.mark.parametrize("name", FORMATS)
def test_no_mutated_body_costs_a_run_or_a_sample(core: Core, envelope: MakeEnvelope, name: str) -> None:
    run_mutated(core, envelope, name, 400)


@pytest.mark.slow
@pytest.mark.timeout(7_200)
@pytest.mark.parametrize("name", FORMATS)
def test_none_of_thousands_of_mutated_bodies_costs_a_run_or_a_sample(core: Core, envelope: MakeEnvelope, name: str) -> None:
    run_mutated(core, envelope, name, COUNT)


def run_mutated(core: Core, envelope: MakeEnvelope, name: str, count: int) -> None:
    make, content_type, encoding = FORMATS[name]
    rng, seeds = random.Random(name), make()
    core.config = CoreConfig(lake=str(core.root))
    loop = RunLoop(core.config, core.mailbox, SystemClock(), Engine(), 1)
    sent: dict[str, Any] = {"content_type": content_type, "encoding": encoding}
    for first in range(0, count, PIECE):
        places = range(first, min(first + PIECE, count))
        core.landing.seal([envelope(at * SAMPLES, SAMPLES, body=mutate(rng, rng.choice(seeds)), **sent) for at in places])
        assert loop.step()
    (books,) = loop.ledger.books.values()
    assert books.received == books.committed + books.quarantined == count * SAMPLES
    assert books.quarantined > count / 2
    assert len(core.rows("streams/vehicle_telemetry")) == books.committed
    assert worker_pool(1).deaths == 0, "a worker died: the body that did it is in quarantine, at stage decode"


@pytest.mark.parametrize("zone", ["UTC", "roadway"])
def test_a_name_or_zone_of_a_column_that_is_no_text_is_refused_and_is_no_fault_of_ours(
    core: Core, envelope: MakeEnvelope, as_ipc: AsIpc, zone: str
) -> None:
    times = pa.array([1_790_000_000_000_000])
    columns = {"event_time": times.cast(US), "speed_mps": [1.0], "found": times.cast(pa.timestamp("us", zone)), "highway": ["a"]}
    clean = as_ipc(pa.record_batch(columns))
    body = clean.replace(b"roadway", b"ro\xb8dway") if zone == "roadway" else clean.replace(b"highway", b"hi\xb8hway")
    core.landing.seal([envelope(0, 1, body=body), envelope(1, 1)])
    core.run()
    (refused,) = core.rows("quarantine")
    assert refused["stage"] == "decode"
    assert "utf-8" in refused["reason"]
    assert [row["seq"] for row in core.rows("streams/vehicle_telemetry")] == [1]


def test_no_mutated_head_costs_the_bridge_more_than_a_refusal() -> None:
    rng = random.Random("heads")
    reader = Reader(Topics("catchment"), Numberer(1, 1), 1 << 20, Partition(0, 1))
    digest = "a" * 64
    refused = parts = rows = 0
    for _ in range(COUNT):
        topic = rng.choice(
            (f"catchment/parts/car-1/{digest}", "catchment/up/car-1/vehicle_telemetry", "catchment/reported/car-1")
        )
        properties = [
            ("offset", "0"),
            ("total", "8"),
            ("epoch", "7"),
            ("firstseq", "0"),
            ("samplecount", "4"),
            ("source", "/devices/car-1"),
        ]
        texts = [topic, *(text for pair in properties for text in pair)]
        for at in {rng.randrange(len(texts)) for _ in range(rng.choice((1, 2)))}:
            texts[at] = mutate(rng, texts[at].encode()).decode("utf-8", "replace")
        pairs = list(zip(texts[1::2], texts[2::2], strict=True))
        rng.shuffle(pairs)
        read = reader.read(BrokerMessage(texts[0], rng.randbytes(8), "application/json", tuple(pairs), 1))
        parts += isinstance(read, Part)
        if isinstance(read, LandingRow):
            rows += 1
            refused += read.kind == KIND_REFUSED
    assert refused > 0
    assert parts > 0
    assert rows > refused
