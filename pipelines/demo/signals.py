"""Numbers that look like what the demo's devices would measure: a vehicle on a loop, connections through a switch."""

import math
import random
from collections.abc import Iterator
from dataclasses import dataclass

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
    """For ever: the connections that a switch closed in one tick of 100 ms, named as in the contract.

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
