"""Declare in a contract the values that must not leave a device as they are. The device redacts them before storing."""

from typing import Literal

import msgspec

from schemas.errors import ContractError

HASH_CHARS = 32
MASK = "***"
_TEXT = ("string",)
_COARSE = ("int32", "int64", "float32", "float64", "timestamp")


class Redact(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The redaction of one column.

    Attributes:
        how: drop: null; mask: `***` and the last `keep` characters; hash: 32 hexadecimal digits of HMAC-SHA-256 under the
            device's key, equal for equal texts; coarsen: down to whole steps.
        keep: characters at the end that a mask leaves.
        step: of coarsen: in the column's own unit, seconds for a timestamp.
    """

    how: Literal["drop", "mask", "hash", "coarsen"]
    keep: int = 0
    step: float | None = None

    def __post_init__(self) -> None:
        if not 0 <= self.keep <= 64 or (self.keep and self.how != "mask"):
            raise ContractError("redact: keep is of how: mask, 0 to 64")
        if (self.step is not None) != (self.how == "coarsen") or (self.step is not None and not 0 < self.step < 1e15):
            raise ContractError("redact: step, above 0, belongs to how: coarsen and to it alone")

    def problem_with(self, kind: str, *, required: bool, has_list: bool, max_length: int | None) -> str:
        """Return the reason why a column of this kind cannot be redacted so; empty if it can."""
        if self.how == "drop":
            return "a required column cannot be dropped" if required else ""
        if self.how == "coarsen":
            return "" if kind in _COARSE else "coarsen needs a number or a timestamp"
        if kind not in _TEXT or has_list:
            return f"{self.how} needs type string without a list of allowed values"
        needed = HASH_CHARS if self.how == "hash" else len(MASK) + self.keep
        return f"{self.how} makes {needed} characters, above max_length" if needed > (max_length or needed) else ""


class ImageRedact(msgspec.Struct, frozen=True, omit_defaults=True, forbid_unknown_fields=True):
    """The regions of a picture that are made unreadable.

    Attributes:
        how: fill: black; blur: so strongly that nothing below an eighth of the box is left.
        boxes: x, y, width, height as shares (0 to 1) of the picture: the same in every picture.
        column: a string column that tells each picture's own boxes: a JSON list of [x, y, width, height] in pixels, or
            labelme's object with shapes. A picture of which it says nothing (null) cannot be redacted; [] is "none".
    """

    how: Literal["fill", "blur"]
    boxes: tuple[tuple[float, float, float, float], ...] = ()
    column: str = ""

    def __post_init__(self) -> None:
        if not self.boxes and not self.column:
            raise ContractError("payload redact: give boxes, or the column that has them")
        for x, y, width, height in self.boxes:
            if not (0 <= x < 1 and 0 <= y < 1 and 0 < width <= 1 - x + 1e-9 and 0 < height <= 1 - y + 1e-9):
                raise ContractError("payload redact: a box is x, y, width, height as shares of the picture, within it")
