"""A label as a labelling tool's file says it, before it is known which sample it is about. Values only."""

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import msgspec

SEPARATOR = "~"
NOTHING_TAG = "nothing"  # the class that says "nothing here" in formats without a word for it
MAX_FILE_BYTES = 1024 * 1024 * 1024


class LabelKind(StrEnum):
    """What a label is: a class of the whole sample, a shape in it, or that somebody looked and there is nothing."""

    CLASS = "class"
    BOX = "box"
    ROTATED = "rotated"
    POLYGON = "polygon"
    POLYLINE = "polyline"
    POINTS = "points"
    MASK = "mask"
    NOTHING = "nothing"


class Drawn(msgspec.Struct, frozen=True):
    """One label of a foreign file.

    `image`: name of the picture as the file has it. `sample`: our id of it, `sha256`: of its bytes, where the file carries them.
    `geometry` in pixels: a box is x, y, width, height; a rotated one centre x, centre y, width, height, degrees clockwise;
    polygons, lines and points are x, y, x, y, ...; a mask is height, width and COCO's run lengths by columns. With `is_share`
    coordinates are shares of the picture's size, and a rotated box is its four corners.
    `source`: the file of a folder that it stands in.
    """

    image: str
    kind: LabelKind
    value: str = ""
    geometry: tuple[float, ...] = ()
    sample: str = ""
    sha256: str = ""
    author: str = ""
    tool_id: str = ""
    made_us: int = 0
    attributes: dict[str, Any] = {}
    is_share: bool = False
    source: str = ""


class LabelTask(msgspec.Struct, frozen=True):
    """A sample to be labelled, or with its labels: `name` is the picture's file name in the export."""

    sample: str
    sha256: str
    name: str
    width: int
    height: int
    labels: tuple[Drawn, ...] = ()


@dataclass(slots=True)
class ForeignFile:
    """What was read: labels, pictures without any (as "nothing here"), what the format could not say, counted, and the tool."""

    tool: str
    labels: list[Drawn] = field(default_factory=list)
    empty: list[Drawn] = field(default_factory=list)
    losses: Counter[str] = field(default_factory=Counter)


def sample_stem(sample: str) -> str:
    """A sample's id as the stem of a file name."""
    return sample.replace("/", SEPARATOR)


def sample_of_name(name: str) -> str:
    """The sample whose id a file name carries; "" if it carries none."""
    stem = name.replace("\\", "/").rsplit("/", 1)[-1].rsplit(".", 1)[0]
    parts = stem.split(SEPARATOR)
    return "/".join(parts) if len(parts) == 4 and parts[2].isdecimal() and parts[3].isdecimal() else ""
