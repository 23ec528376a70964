"""The rules of sets of arrays: how windows are cut and resampled, how pictures become pixels, which arrays a set holds."""

from enum import StrEnum
from fractions import Fraction
from typing import Literal

import msgspec

from pipelines.errors import RefusedError

MAX_STEPS = 1_000_000
MAX_CHANNELS = 4_096
MAX_SIDE_PX = 16_384
MAX_SAMPLE_BYTES = 256 * 1024 * 1024
_MAX_SPAN_S = 366 * 86_400.0
_MAX_DENOMINATOR = 1_000
_MAX_RATE_HZ = 1_000_000.0
_WHOLE = 1e-6


class Resample(StrEnum):
    """How a value at a step of the grid comes from the rows around it.

    `PREVIOUS`: of the last row at or before the step. `NEAREST`: of the nearest row; of two, the earlier. `LINEAR`: between
    the rows before and after. `MEAN`: of all rows from this step to the next.
    """

    PREVIOUS = "previous"
    NEAREST = "nearest"
    LINEAR = "linear"
    MEAN = "mean"


class LabelRule(StrEnum):
    """How the labels of a window's rows become its label.

    `ANY`: of a column of booleans, whether any is true; of any other, the first that is not null. `MAJORITY`: the most
    frequent; of several, the first in order. `LAST`: the last that is not null.
    """

    ANY = "any"
    MAJORITY = "majority"
    LAST = "last"


class WindowRule(msgspec.Struct, frozen=True):
    """How streams become windows.

    Windows begin at multiples of `stride_s` since 1970 and have `rate_hz` steps a second. `columns` are the channels: columns
    of the rows, or, with `signal_column`, its values, each with the number in `value_column`. A step is a hole where the rows
    that `resample` needs lie more than `hole_s` away; with "mean", where there are none from it to the next.
    """

    window_s: float
    stride_s: float
    rate_hz: float
    columns: tuple[str, ...]
    resample: Resample = Resample.PREVIOUS
    hole_s: float = 1.0
    label: str = ""
    label_rule: LabelRule = LabelRule.MAJORITY
    signal_column: str = ""
    value_column: str = ""

    def __post_init__(self) -> None:
        for name, value in (("window", self.window_s), ("stride", self.stride_s), ("hole", self.hole_s)):
            if not 0 < value <= _MAX_SPAN_S:
                raise RefusedError(f"windows: {name} must be above 0 and at most {_MAX_SPAN_S:,.0f} s, not {value:g}")
        if not 0 < self.rate_hz <= _MAX_RATE_HZ or abs(float(self.rate) - self.rate_hz) > _WHOLE * self.rate_hz:
            raise RefusedError(f"windows: a rate of {self.rate_hz:g} Hz cannot be had; give up to {_MAX_RATE_HZ:,.0f}, like 50")
        if not self.columns or len(set(self.columns)) != len(self.columns) or len(self.columns) > MAX_CHANNELS:
            raise RefusedError(f"windows: name 1 to {MAX_CHANNELS:,} different columns to be channels (--columns a,b,c)")
        if bool(self.signal_column) != bool(self.value_column):
            raise RefusedError("windows: signals in rows need both the column of names and the column of values")
        for name, value in (("window", self.window_s), ("stride", self.stride_s)):
            steps = value * self.rate_hz
            if abs(steps - round(steps)) > _WHOLE * max(1.0, steps) or not 1 <= round(steps) <= MAX_STEPS:
                raise RefusedError(
                    f"windows: {name} {value:g} s is {steps:g} steps of 1/{self.rate_hz:g} s; it must be a whole number "
                    f"from 1 to {MAX_STEPS:,}"
                )
        if self.steps * len(self.columns) * 4 > MAX_SAMPLE_BYTES:
            raise RefusedError(f"windows: one of {self.steps:,} steps and {len(self.columns):,} channels is too large")

    @property
    def rate(self) -> Fraction:
        """Steps a second as a fraction, so that no step drifts from the grid."""
        return Fraction(self.rate_hz).limit_denominator(_MAX_DENOMINATOR)

    @property
    def steps(self) -> int:
        """Steps of a window."""
        return round(self.window_s * self.rate_hz)

    @property
    def stride_steps(self) -> int:
        """Steps from the beginning of a window to that of the next."""
        return round(self.stride_s * self.rate_hz)


class PictureRule(msgspec.Struct, frozen=True):
    """How payloads become pixels of one size. `fit` "exact" refuses a picture of another size, "resize" stretches it."""

    height: int
    width: int
    channels: Literal[1, 3] = 3
    fit: Literal["exact", "resize"] = "exact"

    def __post_init__(self) -> None:
        if not 1 <= self.height <= MAX_SIDE_PX or not 1 <= self.width <= MAX_SIDE_PX:
            raise RefusedError(f"pictures: height and width must be from 1 to {MAX_SIDE_PX:,} px")


class ArrayEntry(msgspec.Struct, frozen=True):
    """One Zarr array of a split: `path` in the set's folder, `chunk_rows` samples an inner chunk, `shard_rows` a file."""

    split: str
    name: str
    path: str
    shape: tuple[int, ...]
    dtype: str
    dimensions: tuple[str, ...]
    chunk_rows: int
    shard_rows: int


class ArrayPart(msgspec.Struct, frozen=True):
    """The arrays of a set and the rule that made them; sample i of a split is row i of each of its arrays."""

    arrays: tuple[ArrayEntry, ...]
    windows: WindowRule | None = None
    pictures: PictureRule | None = None
    hole_share: float = 0.0

    def of_split(self, split: str) -> tuple[ArrayEntry, ...]:
        """The arrays of one split; the first holds the values."""
        return tuple(entry for entry in self.arrays if entry.split == split)
