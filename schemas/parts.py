"""Parts: how a payload above the threshold travels. Content-addressed, resumable part by part.

A part is a message on `parts/<device>/<sha256>` with the user properties `offset` and `total` (bytes, decimal) and the
bytes as its body. A body of no bytes is a query: the core answers on `down/<device>/objects` with the ranges it has
made durable, as it does after each part. A sender resumes from that answer and so re-sends at most the part in flight.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from schemas.errors import EnvelopeError
from schemas.ids import Digest

MAX_PART_BYTES = 4 * 1024 * 1024
MAX_OBJECT_BYTES = 64 * 1024**3


@dataclass(frozen=True, slots=True)
class PartHead:
    """The head of a part: bytes `[offset, offset + length)` of a payload of `total`. Length 0 queries the durable ranges.

    Raises:
        EnvelopeError: the numbers contradict each other or are above the limits.
    """

    digest: Digest
    offset: int
    length: int
    total: int

    def __post_init__(self) -> None:
        if not 0 < self.total <= MAX_OBJECT_BYTES:
            raise EnvelopeError(f"total {self.total} must be within 1 and {MAX_OBJECT_BYTES} bytes")
        if not 0 <= self.length <= MAX_PART_BYTES:
            raise EnvelopeError(f"a part of {self.length} bytes is above the limit of {MAX_PART_BYTES}")
        if self.offset < 0 or self.offset + self.length > self.total:
            raise EnvelopeError(
                f"part [{self.offset}, {self.offset + self.length}) lies outside the payload's {self.total} bytes"
            )

    @property
    def is_query(self) -> bool:
        """Whether this asks for the state instead of carrying bytes."""
        return self.length == 0

    def to_properties(self) -> list[tuple[str, str]]:
        """The user properties to publish next to the bytes."""
        return [("offset", str(self.offset)), ("total", str(self.total))]


def read_part_head(digest: Digest, length: int, properties: Iterable[tuple[str, str]]) -> PartHead:
    """Read what a part says of itself.

    Raises:
        EnvelopeError: `offset` or `total` is missing, given twice, not a decimal number, or contradicts the length.
    """
    known: dict[str, str] = {}
    for name, value in properties:
        if name in ("offset", "total") and name in known:
            raise EnvelopeError(f"a part has the property {name} twice")
        known[name] = value
    numbers: dict[str, int] = {}
    for name in ("offset", "total"):
        text = known.get(name, "")
        if not (text.isascii() and text.isdigit() and len(text) <= 19):
            raise EnvelopeError(f"a part needs the property {name} as a decimal number; got {text[:40]!r}")
        numbers[name] = int(text)
    return PartHead(digest, numbers["offset"], length, numbers["total"])
