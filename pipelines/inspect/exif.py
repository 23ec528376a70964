"""What the camera wrote into a picture: maker, exposure, time, place.

Stands alone because each inspector is one module.
"""

import re
from fractions import Fraction

from pipelines.inspect.pixels import fields

Facts = tuple[
    str | None, str | None, str | None, str | None, int | None, float | None, float | None, int | None, float | None, float | None
]
_MAX_TEXT = 200
_VALUE = re.compile(r"(?s)(?P<twice>.*), (?P<type>[A-Za-z]+), \d+ components, \d+ bytes\)")


def exif_facts(body: bytes) -> Facts:
    """The exif columns, in order; None for what the camera did not write.

    Raises:
        UninspectableError: not a picture.
    """
    values = {name.rpartition("-")[2]: _plain(value) for name, value in fields(body).items()}
    taken = values.get("DateTimeOriginal") or values.get("DateTime")
    return (
        values.get("Make"),
        values.get("Model"),
        values.get("Software"),
        taken,
        _whole(values.get("Orientation")),
        _number(values.get("ExposureTime")),
        _number(values.get("FNumber")),
        _whole(values.get("ISOSpeedRatings")),
        _degrees(values.get("GPSLatitude"), values.get("GPSLatitudeRef"), "S", 90),
        _degrees(values.get("GPSLongitude"), values.get("GPSLongitudeRef"), "W", 180),
    )


def _plain(value: str) -> str | None:
    """The value in what libvips tells: `20/10 (2.0, Rational, 1 components, 8 bytes)`, and of text `V (V, ASCII, ...)`."""
    match = _VALUE.fullmatch(value)
    if match is None:
        text = value
    elif match["type"] == "ASCII":
        text = match["twice"][: (len(match["twice"]) - len(" (")) // 2]  # the text may hold brackets itself
    else:
        text = match["twice"].partition(" (")[0]
    return text.strip("\0 ")[:_MAX_TEXT] or None


def _number(text: str | None) -> float | None:
    try:
        return float(Fraction(text.split()[0])) if text else None
    except (ValueError, ZeroDivisionError, IndexError, OverflowError):
        return None


def _whole(text: str | None) -> int | None:
    number = _number(text)
    return int(number) if number is not None and abs(number) < 2**31 else None


def _degrees(text: str | None, side: str | None, negative: str, limit: int) -> float | None:
    """Degrees, minutes, seconds as rationals; None unless all of it makes sense."""
    parts = [_number(part) for part in (text or "").split()]
    if not 1 <= len(parts) <= 3:
        return None
    total = 0.0
    for place, part in enumerate(parts):
        if part is None:
            return None
        total += part / 60**place
    if not 0 <= total <= limit:
        return None
    return -total if side == negative else total
