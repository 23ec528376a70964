"""Small slides as a scanner sends them: bytes of a tiled TIFF, and a landing row that carries some."""

import hashlib
import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import tifffile

from pipelines.bridge.rows import LandingRow
from tests.plant.core import envelope, ipc


def tiff_slide(pixels: npt.NDArray[np.uint8], **options: Any) -> bytes:
    """A tiled RGB TIFF of these pixels."""
    body = io.BytesIO()
    tifffile.imwrite(body, pixels, **{"tile": (64, 64), "photometric": "rgb", **options})
    return body.getvalue()


def half_white(side: int = 128, seed: int = 1) -> npt.NDArray[np.uint8]:
    """(side, side, 3) tissue-like noise below a glass-like upper half."""
    pixels = np.random.default_rng(seed).integers(60, 200, (side, side, 3), np.uint8)
    pixels[: side // 2] = 255
    return pixels


def landed(bodies: Sequence[bytes], first: int = 0, device: str = "scanner-1", **columns: list[Any]) -> LandingRow:
    """A row of the landing with one sample for each slide."""
    batch = pa.record_batch(
        {
            "event_time": pa.array([1_790_000_000_000_000] * len(bodies)).cast(pa.timestamp("us", "UTC")),
            "media_type": ["image/tiff"] * len(bodies),
            "payload": pa.array(bodies, pa.binary()),
            "payload_sha256": [hashlib.sha256(body).hexdigest() for body in bodies],
            **columns,
        }
    )
    return envelope(first, len(bodies), device=device, stream="slide", body=ipc(batch))
