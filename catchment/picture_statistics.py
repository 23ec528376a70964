"""Statistics and the perceptual hash of decoded pixels: one meaning of them for the device and for the core.

Reached by those who have NumPy; nothing else of this package imports it.
"""

from functools import lru_cache

import numpy as np
import numpy.typing as npt

_HASH_SIDE, _SAMPLED = 8, 32
_Floats = npt.NDArray[np.float32]
_FREQUENCIES, _PLACES = np.arange(_HASH_SIDE)[:, None], np.arange(_SAMPLED)[None, :]
_COSINES = np.cos(np.pi * _FREQUENCIES * (2 * _PLACES + 1) / (2 * _SAMPLED))
PictureStatistics = tuple[float, float, float, float, float, str]


def picture_statistics(pixels: npt.NDArray[np.uint8]) -> PictureStatistics:
    """Luma mean and contrast, sharpness, entropy, colourfulness and hash of (rows, columns, 1 or 3) pixels."""
    colours = pixels.astype(np.float32)
    planes = [np.ascontiguousarray(colours[:, :, band]) for band in range(colours.shape[2])]
    red, green, blue = planes if len(planes) == 3 else (planes[0],) * 3
    luma = np.float32(0.299) * red + np.float32(0.587) * green + np.float32(0.114) * blue
    mean, variance = _moments(luma)
    colourfulness = _colourfulness(red, green, blue)
    return mean, variance**0.5, _sharpness(luma), _entropy(luma), colourfulness, perceptual_hash(luma)


def perceptual_hash(luma: _Floats) -> str:
    """64 bits: which of the lowest frequencies are above their median. Alike pictures differ in a few bits."""
    low = (_COSINES @ _averaged(luma) @ _COSINES.T).ravel()
    bits = low > np.median(low[1:])
    bits[0] = False  # the mean says nothing of the picture's shapes
    return np.packbits(bits).tobytes().hex()


def _averaged(luma: _Floats) -> npt.NDArray[np.float64]:
    """32 x 32 means. No matrix product with a matrix of the picture's size: BLAS would start threads for it."""
    rows, columns = (_cells(length) for length in luma.shape)
    sums = np.add.reduceat(np.add.reduceat(luma, rows, axis=0, dtype=np.float64), columns, axis=1)
    sizes = np.diff(rows, append=luma.shape[0])[:, None] * np.diff(columns, append=luma.shape[1])[None, :]
    return np.asarray(sums / np.maximum(sizes, 1))


@lru_cache(maxsize=256)
def _cells(length: int) -> npt.NDArray[np.int64]:
    return np.minimum(np.linspace(0, length, _SAMPLED, endpoint=False).astype(np.int64), length - 1)


def _moments(values: _Floats) -> tuple[float, float]:
    mean = float(values.mean(dtype=np.float64))
    centred = (values - np.float32(mean)).ravel()
    return mean, float(np.einsum("i,i->", centred, centred)) / centred.size


def _sharpness(luma: _Floats) -> float:
    if min(luma.shape) < 3:
        return 0.0
    edges = 4 * luma[1:-1, 1:-1]
    edges -= luma[:-2, 1:-1]
    edges -= luma[2:, 1:-1]
    edges -= luma[1:-1, :-2]
    edges -= luma[1:-1, 2:]
    return _moments(edges)[1]


def _entropy(luma: _Floats) -> float:
    counts = np.bincount(luma.astype(np.uint8).ravel(), minlength=256)
    shares = counts[counts > 0] / luma.size
    return abs(float(-(shares * np.log2(shares)).sum()))


def _colourfulness(red: _Floats, green: _Floats, blue: _Floats) -> float:
    if red is green:
        return 0.0
    one, other = red - green, np.float32(0.5) * (red + green) - blue
    (mean_one, var_one), (mean_other, var_other) = _moments(one), _moments(other)
    return float((var_one + var_other) ** 0.5 + 0.3 * (mean_one**2 + mean_other**2) ** 0.5)
