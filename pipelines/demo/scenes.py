"""Pictures that look like what the demo's devices would see, drawn from a seed: the same seed gives the same pixels."""

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

Pixels = NDArray[np.uint8]

WIDTH = 320
HEIGHT = 240
DEFECT_SHARE = 0.3


@dataclass(frozen=True, slots=True)
class StripFrame:
    """A picture of the metal strip: pixels [height, width], mask of the same shape (255 = defect)."""

    pixels: Pixels
    mask: Pixels
    label: str


def strip_frame(seed: int, index: int) -> StripFrame:
    """Frame `index` of a line camera over a brushed metal strip; about 30 % show a scratch or a pit."""
    rng = np.random.default_rng((seed, index))
    metal = _brushed_metal(rng)
    mask = Image.new("L", (WIDTH, HEIGHT), 0)
    if rng.random() < DEFECT_SHARE:
        if rng.random() < 0.5:
            _scratch(rng, ImageDraw.Draw(mask))
        else:
            _pits(rng, ImageDraw.Draw(mask))
        label = "defect"
    else:
        label = "good"
    marked = np.asarray(mask, dtype=np.uint8)
    depth = rng.uniform(55.0, 95.0) * (1 if rng.random() < 0.8 else -1)
    pixels = np.clip(metal - depth * (marked > 0), 0, 255).astype(np.uint8)
    return StripFrame(pixels=pixels, mask=marked, label=label)


def road_frame(seed: int, index: int, *, hour: float, steering_deg: float) -> Pixels:
    """Draw the view of a vehicle's camera at this hour (0..24) with this steering: sky, land, road and lane lines.

    Returns:
        Pixels of shape [height, width, 3], RGB.
    """
    rng = np.random.default_rng((seed, index, 1))
    light = daylight(hour)
    horizon = HEIGHT * 9 // 20
    image = Image.fromarray(_sky_and_land(light, horizon))
    draw = ImageDraw.Draw(image)
    shift = steering_deg * 1.5
    middle = WIDTH / 2
    road = [(middle + shift - 8, horizon), (middle + shift + 8, horizon), (WIDTH * 1.05, HEIGHT), (-WIDTH * 0.05, HEIGHT)]
    draw.polygon(road, fill=_lit((88, 88, 92), light))
    for side in (-0.42, 0.0, 0.42):
        _lane_line(draw, side, shift, horizon, index, _lit((232, 228, 205), max(light, 0.35)))
    noise = rng.normal(0.0, 4.0, (HEIGHT, WIDTH, 1))
    return np.clip(np.asarray(image, dtype=np.float32) + noise, 0, 255).astype(np.uint8)


def daylight(hour: float) -> float:
    """Return the light at this hour: 0.12 at night, 1 at noon."""
    return float(max(0.12, np.sin((hour - 6.0) / 12.0 * np.pi)))


def jpeg(pixels: Pixels, quality: int = 88) -> bytes:
    """Pixels as a JPEG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="JPEG", quality=quality)
    return out.getvalue()


def png(pixels: Pixels) -> bytes:
    """Pixels as a PNG file."""
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, format="PNG", compress_level=3)
    return out.getvalue()


def _brushed_metal(rng: np.random.Generator) -> NDArray[np.float64]:
    streaks = rng.normal(0.0, 7.0, (HEIGHT, 1)) + rng.normal(0.0, 2.5, (HEIGHT, WIDTH))
    light = np.cos((np.arange(WIDTH) / WIDTH - rng.uniform(0.3, 0.7)) * 1.8) * 40.0
    return rng.uniform(125.0, 165.0) + streaks + light[None, :]


def _scratch(rng: np.random.Generator, draw: ImageDraw.ImageDraw) -> None:
    x, y = rng.uniform(20, WIDTH - 90), rng.uniform(30, HEIGHT - 30)
    points = [(x, y)]
    for _ in range(int(rng.integers(3, 7))):
        x, y = x + rng.uniform(10, 30), y + rng.uniform(-12, 12)
        points.append((x, y))
    draw.line(points, fill=255, width=int(rng.integers(2, 5)))


def _pits(rng: np.random.Generator, draw: ImageDraw.ImageDraw) -> None:
    for _ in range(int(rng.integers(1, 5))):
        x, y, radius = rng.uniform(20, WIDTH - 20), rng.uniform(20, HEIGHT - 20), rng.uniform(3, 9)
        draw.ellipse((x - radius, y - radius * 0.7, x + radius, y + radius * 0.7), fill=255)


def _sky_and_land(light: float, horizon: int) -> Pixels:
    picture = np.empty((HEIGHT, WIDTH, 3), dtype=np.float64)
    rise = np.linspace(0.0, 1.0, horizon)[:, None, None]
    evening = 1.0 - min(1.0, abs(light - 0.35) / 0.35)
    zenith, rim = np.array([70.0, 120.0, 200.0]), np.array([190.0, 205.0, 225.0]) + evening * np.array([60.0, -30.0, -90.0])
    picture[:horizon] = zenith * (1 - rise) + rim * rise
    picture[horizon:] = np.array([92.0, 116.0, 70.0])
    return np.clip(picture * light, 0, 255).astype(np.uint8)


def _lane_line(
    draw: ImageDraw.ImageDraw, side: float, shift: float, horizon: int, index: int, colour: tuple[int, int, int]
) -> None:
    for dash in range(8):
        near = (dash + (index % 4) / 4.0) / 8.0
        far = near + (0.06 if side == 0.0 else 0.125)
        ends = []
        for depth in (near**2, min(far, 1.0) ** 2):
            bend = shift * (1.0 - depth) ** 2
            ends.append((WIDTH / 2 + bend + side * WIDTH * (0.05 + depth), horizon + (HEIGHT - horizon) * depth))
        draw.line([ends[0], ends[1]], fill=colour, width=1 + int(4 * near**2))


def _lit(colour: tuple[int, int, int], light: float) -> tuple[int, int, int]:
    return int(colour[0] * light), int(colour[1] * light), int(colour[2] * light)
