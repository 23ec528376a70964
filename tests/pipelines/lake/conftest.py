"""Frames for a lake."""

import hashlib
from collections.abc import Callable

import pyarrow as pa
import pytest


@pytest.fixture
def frames(as_ipc: Callable[[pa.RecordBatch], bytes]) -> Callable[[int, int], bytes]:
    """The body of some frames, each with a payload of its own."""

    def make(first: int, count: int) -> bytes:
        payloads = [hashlib.sha256(str(first + at).encode()).digest() * (20 + at) for at in range(count)]
        return as_ipc(
            pa.record_batch(
                {
                    "event_time": pa.array([1_790_000_000_000_000 - first - at for at in range(count)]).cast(
                        pa.timestamp("us", "UTC")
                    ),
                    "media_type": ["image/jpeg"] * count,
                    "payload": pa.array(payloads, pa.binary()),
                    "payload_sha256": [hashlib.sha256(body).hexdigest() for body in payloads],
                }
            )
        )

    return make
