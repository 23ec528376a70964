"""What the demo's devices would see and measure, drawn from a seed: pictures, a vehicle on a loop, connections of a switch."""

import io
import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

DAY_S = 60.0  # the vehicle's day passes in a minute, so that a short demo sees noon and night
LAP_S = 90.0
CENTRE_LATITUDE_DEG = 48.137
CENTRE_LONGITUDE_DEG = 11.575
EARTH_M_PER_DEG = 111_320.0

Value = str | int | float | bool


@dataclass(frozen=True, slots=True)
class DriveState:
    """The vehicle's place and motion, `t_s` seconds after it set out. Columns are named as in the contract."""

    t_s: float
    speed_mps: float
    steering_deg: float
    acceleration_mps2: float
    yaw_rate_dps: float
    latitude_deg: float
    longitude_deg: float
    hour: float

    def columns(self) -> dict[str, Value]:
        """The contract's columns: all but the hour, which is the scenery's."""
        return {name: round(getattr(self, name), 7) for name in _COLUMNS}


_COLUMNS = (
    "t_s", "speed_mps", "steering_deg", "acceleration_mps2", "yaw_rate_dps", "latitude_deg", "longitude_deg",
)  # fmt: skip


def drive(seed: int, t_s: float) -> DriveState:
    """The vehicle on its loop (a bent ellipse of about 1.2 km), a pure function of seed and time."""
    jitter = random.Random(f"{seed}/{t_s:.3f}")  # noqa: S311 - scenery, not secrets
    x, y, heading = _loop(t_s)
    ahead_x, ahead_y, ahead = _loop(t_s + 0.1)
    turn = (ahead - heading + math.pi) % (2 * math.pi) - math.pi
    speed = math.hypot(ahead_x - x, ahead_y - y) / 0.1
    later_x, later_y, _ = _loop(t_s + 0.2)
    later_speed = math.hypot(later_x - ahead_x, later_y - ahead_y) / 0.1
    yaw_rate = math.degrees(turn) / 0.1
    return DriveState(
        t_s=t_s,
        speed_mps=speed + jitter.gauss(0.0, 0.02),
        steering_deg=math.degrees(math.atan2(2.7 * math.radians(yaw_rate), max(speed, 1.0))) * 15.0 + jitter.gauss(0.0, 0.3),
        acceleration_mps2=(later_speed - speed) / 0.1 + jitter.gauss(0.0, 0.05),
        yaw_rate_dps=yaw_rate + jitter.gauss(0.0, 0.1),
        latitude_deg=CENTRE_LATITUDE_DEG + y / EARTH_M_PER_DEG,
        longitude_deg=CENTRE_LONGITUDE_DEG + x / (EARTH_M_PER_DEG * math.cos(math.radians(CENTRE_LATITUDE_DEG))),
        hour=(8.0 + t_s / DAY_S * 24.0) % 24.0,
    )


def _loop(t_s: float) -> tuple[float, float, float]:
    """Metres east and north of the centre, and heading in radians."""

    def at(seconds: float) -> tuple[float, float]:
        angle = 2 * math.pi * (seconds / LAP_S + 0.05 * math.sin(2 * math.pi * seconds / 17.0) / (2 * math.pi))
        return 230.0 * math.cos(angle), 140.0 * math.sin(angle) + 40.0 * math.sin(2 * angle)

    (x, y), (next_x, next_y) = at(t_s), at(t_s + 0.01)
    return x, y, math.atan2(next_y - y, next_x - x)


_SERVICES = ((443, "tcp", "ssl"), (80, "tcp", "http"), (53, "udp", "dns"), (22, "tcp", "ssh"), (123, "udp", "ntp"))
_SCANNED_PORTS = (21, 22, 23, 25, 80, 110, 135, 139, 143, 443, 445, 993, 1433, 3306, 3389, 5432, 5900, 6379, 8080, 9200)


def flows(seed: int) -> Iterator[list[dict[str, Value]]]:
    """Without end: the connections that a switch closed in one tick of 100 ms, named as in the contract.

    Mostly clients talking to servers; about every 6 s one host scans the ports of another for a second.
    """
    rng = random.Random(seed)  # noqa: S311 - scenery, not secrets
    number, scan_left, scanner, target = 0, 0, "", ""
    while True:
        tick = []
        for _ in range(rng.randint(1, 6)):
            number += 1
            tick.append(_conversation(rng, number))
        if scan_left == 0 and rng.random() < 1 / 60:
            scan_left, scanner, target = 10, f"10.0.9.{rng.randint(2, 250)}", f"10.0.1.{rng.randint(2, 40)}"
        if scan_left:
            scan_left -= 1
            for port in _SCANNED_PORTS:
                number += 1
                tick.append(_probe(rng, number, scanner, target, port))
        yield tick


def _conversation(rng: random.Random, number: int) -> dict[str, Value]:
    port, proto, service = rng.choices(_SERVICES, weights=(50, 20, 20, 3, 7))[0]
    sent, received = int(rng.lognormvariate(6.5, 1.2)), int(rng.lognormvariate(8.5, 1.8))
    packets_out, packets_in = 2 + sent // 900, 2 + received // 1_400
    return {
        "uid": f"C{number:010d}", "src_ip": f"10.0.2.{rng.randint(2, 200)}", "src_port": rng.randint(32_768, 60_999),
        "dst_ip": f"10.0.1.{rng.randint(2, 40)}", "dst_port": port, "proto": proto, "service": service,
        "duration_s": round(rng.lognormvariate(-1.5, 1.0), 6), "orig_bytes": sent, "resp_bytes": received,
        "conn_state": "SF", "history": "ShADadFf" if proto == "tcp" else "Dd", "orig_pkts": packets_out,
        "resp_pkts": packets_in, "orig_ip_bytes": sent + 40 * packets_out, "resp_ip_bytes": received + 40 * packets_in,
        "label": "benign",
    }  # fmt: skip


def _probe(rng: random.Random, number: int, scanner: str, target: str, port: int) -> dict[str, Value]:
    open_port = port in (22, 80, 443)
    return {
        "uid": f"C{number:010d}", "src_ip": scanner, "src_port": rng.randint(32_768, 60_999), "dst_ip": target,
        "dst_port": port, "proto": "tcp", "duration_s": round(rng.uniform(0.00005, 0.002), 6), "orig_bytes": 0,
        "resp_bytes": 0, "conn_state": "RSTO" if open_port else "REJ", "history": "ShR" if open_port else "Sr",
        "orig_pkts": 1, "resp_pkts": 1, "orig_ip_bytes": 44, "resp_ip_bytes": 40, "label": "malicious",
        "detailed_label": "port-scan",
    }  # fmt: skip


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
