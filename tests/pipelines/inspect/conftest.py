"""Pictures that are drawn here."""

import io
from collections.abc import Callable

import numpy as np
import pytest
from PIL import Image

Draw = Callable[..., bytes]


@pytest.fixture
def draw() -> Draw:
    """Draws a JPEG or PNG; `seed` decides its shapes, `shift` moves its brightness."""

    def make(seed: int = 0, *, shift: int = 0, width: int = 200, height: int = 120, form: str = "JPEG", **saved: object) -> bytes:
        pick = np.random.default_rng(seed)
        coarse = pick.integers(20, 200, (6, 8, 3))
        pixels = np.clip(np.kron(coarse, np.ones((height // 6, width // 8, 1))) + shift, 0, 255).astype(np.uint8)
        body = io.BytesIO()
        Image.fromarray(pixels).save(body, form, **saved)
        return body.getvalue()

    return make
