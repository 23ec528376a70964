"""Masks as run lengths: COCO's numbers and its compressed text, and the rows of a part of a picture that CVAT writes."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from pipelines.errors import RefusedError

MAX_PIXELS = 400_000_000
Mask: TypeAlias = npt.NDArray[np.bool_]


def runs_of(mask: Mask) -> tuple[float, ...]:
    """Height, width and COCO's run lengths: by columns, beginning with a run of nothing."""
    return (*map(float, mask.shape), *_lengths(mask.ravel(order="F")))


def mask_of(geometry: tuple[float, ...]) -> Mask:
    """The pixels of run lengths.

    Raises:
        RefusedError: they do not fill the size.
    """
    height, width, *counts = map(int, geometry)
    if height < 0 or width < 0 or height * width > MAX_PIXELS or sum(counts) != height * width or min(counts, default=0) < 0:
        raise RefusedError(f"a mask of {height} x {width} whose runs do not fill it")
    flat = np.repeat(np.arange(len(counts)) % 2 == 1, counts)
    return flat.reshape((height, width), order="F")


def counts_of_text(text: str) -> list[int]:
    """Run lengths of COCO's compressed text: six bits a character, differences from the run before the last."""
    counts: list[int] = []
    at = 0
    while at < len(text):
        value, shift, more = 0, 0, True
        while more and at < len(text):
            piece = ord(text[at]) - 48
            value |= (piece & 0x1F) << (5 * shift)
            more = bool(piece & 0x20)
            at, shift = at + 1, shift + 1
            if not more and piece & 0x10:
                value |= -1 << (5 * shift)
        counts.append(value + (counts[-2] if len(counts) > 2 else 0))
    return counts


def text_of_counts(counts: list[int]) -> str:
    """COCO's compressed text of run lengths."""
    text: list[str] = []
    for at, count in enumerate(counts):
        value = count - (counts[at - 2] if at > 2 else 0)
        more = True
        while more:
            piece = value & 0x1F
            value >>= 5
            more = value != (-1 if piece & 0x10 else 0)
            text.append(chr(48 + (piece | (0x20 if more else 0))))
    return "".join(text)


def part_of(mask: Mask) -> tuple[int, int, int, int, list[int]]:
    """Left, top, width and height of the part that is not empty, and its run lengths by rows; all 0 for an empty mask."""
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0, []
    top, left = int(rows[0]), int(columns[0])
    part = mask[top : int(rows[-1]) + 1, left : int(columns[-1]) + 1]
    return left, top, part.shape[1], part.shape[0], [int(length) for length in _lengths(part.ravel())]


def whole_of(part: tuple[int, int, int, int], runs: list[int], size: tuple[int, int]) -> Mask:
    """The mask of a picture of `size` (height, width) out of the run lengths, by rows, of a part (left, top, width, height).

    Raises:
        RefusedError: the part is not within the picture, or its runs do not fill it.
    """
    left, top, width, height = part
    is_inside = left >= 0 and top >= 0 and width >= 0 and height >= 0 and left + width <= size[1] and top + height <= size[0]
    if not is_inside or size[0] * size[1] > MAX_PIXELS or sum(runs) != width * height or min(runs, default=0) < 0:
        raise RefusedError(f"a mask of {height} x {width} at {left}, {top} does not fit a picture of {size[0]} x {size[1]}")
    whole = np.zeros(size, np.bool_)
    whole[top : top + height, left : left + width] = np.repeat(np.arange(len(runs)) % 2 == 1, runs).reshape(height, width)
    return whole


def _lengths(flat: npt.NDArray[np.bool_]) -> list[float]:
    padded = np.concatenate(([False], flat))
    ends = np.concatenate((np.flatnonzero(padded[1:] != padded[:-1]), [padded.size - 1]))
    lengths: list[float] = np.diff(ends, prepend=0).astype(float).tolist()
    return lengths
