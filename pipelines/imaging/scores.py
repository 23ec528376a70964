"""What a chip looks like, as numbers: tissue by one threshold for the slide, near white, near black, entropy and focus.

Computed once, when a chip is cut; where the limits lie is for policies to say. Tissue is what lies on the tissue's side of Otsu's
threshold over the whole slide: of saturation where pixels are RGB, of intensity where they are gray. Each chip's histogram is
kept until the last chip is cut, and the threshold is that of their sum: every pixel counts, none is decoded twice, and a chip
that is all tissue is not split in two.

Otsu: A threshold selection method from gray-level histograms, IEEE Trans. SMC 9 (1979). Focus is the variance of the Laplacian:
Pech-Pacheco et al., Diatom autofocusing in brightfield microscopy, ICPR 2000.
"""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.imaging.facts import Colours
from pipelines.imaging.tiling import TileWindow

BINS = 256
NEAR_WHITE = 235
NEAR_BLACK = 20
COUNTS = "saturation_counts"
# Added to a chip's row by its band; `tissue` follows when the whole slide is cut.
BAND_SCORES = ("white", "black", "entropy", "focus")
_RED, _GREEN, _BLUE = 77, 150, 29  # of 256: the luma of ITU-R BT.601
Floats = npt.NDArray[np.float32]
Counts = npt.NDArray[np.uint32]
_Bytes = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class BandScores:
    """The scores of the chips of a band; NaN where samples have no white and no black that all programs agree on.

    Attributes:
        white: (n,) share near white.
        black: (n,) share near black.
        entropy: (n,) bits of the distribution of gray values.
        focus: (n,) variance of the Laplacian of gray values.
        counts: (n, BINS) pixels by saturation, or by intensity of gray ones; zeros where they have none.
    """

    white: Floats
    black: Floats
    entropy: Floats
    focus: Floats
    counts: Counts

    @property
    def background(self) -> Floats:
        """(n,) share near white or near black."""
        return self.white + self.black

    def columns(self) -> dict[str, pa.Array]:
        """The scores as columns of chip rows, nulls for NaN, and the counts as bytes."""
        scores = {name: pa.array(getattr(self, name), from_pandas=True) for name in ("background", *BAND_SCORES)}
        return {**scores, COUNTS: pa.array([row.tobytes() for row in self.counts], pa.binary())}


def band_scores(pixels: Any, windows: Sequence[TileWindow], colours: Colours, threads: int = 2) -> BandScores:
    """Score the chips of a band; those that are not gray or RGB of 8 bits have no scores.

    Args:
        pixels: (n, size, size, channels).
        windows: of each chip, of which the part inside the slide is scored.
        colours: what the channels mean.
        threads: chips at a time.
    """
    count, has_colours = len(pixels), colours is Colours.RGB
    if pixels.dtype != np.uint8 or colours not in (Colours.RGB, Colours.GRAY):
        nothing = np.full(count, np.nan, np.float32)
        return BandScores(nothing, nothing, nothing, nothing, np.zeros((count, BINS), np.uint32))

    def one(at: int) -> tuple[tuple[float, float, float, float], Counts]:
        inside = pixels[at, : windows[at].height, : windows[at].width]
        return _scored(inside[..., :3] if has_colours else inside[..., :1])

    with ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(one, range(count)))
    numbers = np.array([scores for scores, _ in found], np.float32).reshape(count, len(BAND_SCORES))
    counts = np.array([each for _, each in found], np.uint32).reshape(count, BINS)
    white, black, entropy, focus = np.ascontiguousarray(numbers.T)
    return BandScores(white, black, entropy, focus, counts)


def _scored(chip: _Bytes) -> tuple[tuple[float, float, float, float], Counts]:
    """Shares, entropy and counts look at every second pixel each way, the focus at all of them."""
    sparse = np.ascontiguousarray(chip[::2, ::2].transpose(2, 0, 1))
    most, least = sparse.max(axis=0), sparse.min(axis=0)
    white, black = (float(np.count_nonzero(each)) / most.size for each in (least >= NEAR_WHITE, most <= NEAR_BLACK))
    gray = _gray(chip)
    counts = np.bincount(saturation(sparse).ravel() if len(sparse) == 3 else sparse.ravel(), minlength=BINS)
    return (white, black, entropy_bits(gray[::2, ::2]), laplacian_variance(gray)), counts.astype(np.uint32)


def saturation(channels: _Bytes) -> _Bytes:
    """HSV's saturation as a byte; 0 for black.

    Args:
        channels: (3, height, width).
    """
    most = channels.max(axis=0)
    spread = (most - channels.min(axis=0)).astype(np.uint16) * np.uint16(255)
    return np.asarray(spread // np.maximum(most, 1), np.uint8)


def _gray(chip: _Bytes) -> _Bytes:
    if chip.shape[2] == 1:
        return np.asarray(chip[..., 0])
    red, green, blue = (chip[..., channel].astype(np.uint16) for channel in range(3))
    return np.asarray((red * np.uint16(_RED) + green * np.uint16(_GREEN) + blue * np.uint16(_BLUE)) >> 8, np.uint8)


def entropy_bits(gray: _Bytes) -> float:
    """Shannon's entropy of the values, 0 to 8 bits."""
    counts = np.bincount(gray.ravel(), minlength=BINS)
    shares = counts[counts > 0] / gray.size
    return float(-(shares * np.log2(shares)).sum()) + 0.0


def laplacian_variance(gray: _Bytes) -> float:
    """The variance of four times a pixel less its four neighbours, without the border; 0 where there is no inside."""
    if min(gray.shape) < 3:
        return 0.0
    wide = gray.astype(np.int16)
    edges = 4 * wide[1:-1, 1:-1] - wide[:-2, 1:-1] - wide[2:, 1:-1] - wide[1:-1, :-2] - wide[1:-1, 2:]
    flat = edges.ravel().astype(np.float32)
    return float(np.dot(flat, flat) / flat.size - flat.mean(dtype=np.float64) ** 2)


def otsu_threshold(counts: npt.NDArray[Any]) -> int | None:
    """The value up to which pixels are of the lower class; None where all pixels have one value.

    Args:
        counts: (BINS,) pixels by value.
    """
    values = np.arange(len(counts), dtype=np.float64)
    weights = counts.astype(np.float64)
    lower, upper = np.cumsum(weights), np.cumsum(weights[::-1])[::-1]
    if np.count_nonzero(weights) < 2:
        return None
    lower_mean = np.cumsum(weights * values) / np.maximum(lower, 1)
    upper_mean = (np.cumsum((weights * values)[::-1]) / np.maximum(upper[::-1], 1))[::-1]
    between = lower[:-1] * upper[1:] * (lower_mean[:-1] - upper_mean[1:]) ** 2
    return int(np.argmax(between))


def tissue_shares(counts: npt.NDArray[Any], total: npt.NDArray[Any], *, has_colours: bool) -> pa.Array:
    """The share of each chip on the tissue's side of the slide's threshold; null where the slide has no two kinds of pixels.

    Saturated pixels are tissue. Of gray slides the rarer side is: dark tissue on bright glass, bright tissue on a dark ground.

    Args:
        counts: (n, BINS) of each chip.
        total: (BINS,) of the whole slide.
        has_colours: whether the counts are of saturation.
    """
    threshold = otsu_threshold(total)
    if threshold is None:
        return pa.nulls(len(counts), pa.float32())
    above = counts[:, threshold + 1 :].sum(axis=1, dtype=np.float64) / np.maximum(counts.sum(axis=1, dtype=np.float64), 1)
    is_above = has_colours or total[threshold + 1 :].sum() * 2 <= total.sum()
    shares = above if is_above else 1 - above
    return pa.array(shares.astype(np.float32), from_pandas=True)


def with_tissue(rows: pa.Table, total: npt.NDArray[Any], *, has_colours: bool) -> pa.Table:
    """Rows of chips with their share of tissue, and without the counts.

    Args:
        rows: with the column of counts.
        total: (BINS,) the counts of the whole slide.
        has_colours: whether the counts are of saturation.
    """
    shares = tissue_shares(counts_of(rows.column(COUNTS)), total, has_colours=has_colours)
    place = rows.schema.get_field_index("tissue")
    return rows.set_column(place, rows.schema.field(place), shares).drop_columns([COUNTS])


def counts_of(column: pa.ChunkedArray) -> npt.NDArray[np.uint32]:
    """(n, BINS) the counts of a column of bytes."""
    body = b"".join(column.to_pylist())
    return np.frombuffer(body, np.uint32).reshape(len(column), BINS)
