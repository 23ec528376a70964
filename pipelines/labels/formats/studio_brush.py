"""The brush of Label Studio: a picture of four bytes a pixel, packed in runs of bits; what is painted is not zero.

Stands alone because a coding of bits is a thought of its own.
"""

from collections.abc import Sequence

import numpy as np

from pipelines.errors import RefusedError
from pipelines.labels.run_lengths import MAX_PIXELS, Mask

_CHANNELS = 4
_RUN_BITS = (3, 4, 8, 16)
_WORD_BITS = 8
_HEAD_BITS = 32 + 5 + 4 * len(_RUN_BITS)


def mask_of_brush(packed: Sequence[int], width: int, height: int) -> Mask:
    """The pixels whose last byte (alpha) is not zero.

    Raises:
        RefusedError: it is not such a coding, or of another size.
    """
    size = width * height * _CHANNELS
    try:
        bits = "".join(f"{byte:08b}" for byte in bytes(packed))
        total, word = int(bits[:32], 2), int(bits[32:37], 2) + 1
        run_bits = [int(bits[37 + 4 * at : 41 + 4 * at], 2) + 1 for at in range(4)]
        if total != size or width * height > MAX_PIXELS:
            raise RefusedError(f"a brush of {total:,} values does not fill a picture of {width} x {height}")
        alpha: Mask = _unpacked(bits, total, word, run_bits).reshape(height, width, _CHANNELS)[:, :, 3] != 0
    except (ValueError, TypeError, IndexError) as error:
        raise RefusedError(f"a brush that cannot be read: {error}") from error
    return alpha


def brush_of(mask: Mask) -> list[int]:
    """The same in Label Studio's coding."""
    flat = np.repeat(mask.ravel(), _CHANNELS)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    starts = np.concatenate(([0], edges, [flat.size])).astype(np.int64)
    bits = [f"{flat.size:032b}", f"{_WORD_BITS - 1:05b}", *(f"{length - 1:04b}" for length in _RUN_BITS)]
    longest = 1 << _RUN_BITS[-1]
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        value = 255 if flat[start] else 0
        bits += [f"111{min(longest, end - at) - 1:016b}{value:08b}" for at in range(start, end, longest)]
    text = "".join(bits)
    text += "0" * (-len(text) % 8)
    return list(int(text, 2).to_bytes(len(text) // 8, "big"))


def _unpacked(bits: str, total: int, word: int, run_bits: list[int]) -> "np.ndarray[tuple[int], np.dtype[np.uint8]]":
    out = np.zeros(total, np.uint8)
    place, at = _HEAD_BITS, 0
    while at < total:
        is_run, kind = bits[place] == "1", int(bits[place + 1 : place + 3], 2)
        length = run_bits[kind]
        end = at + 1 + int(bits[place + 3 : place + 3 + length], 2)
        place += 3 + length
        if end > total:
            raise ValueError("a run beyond the end")
        if is_run:
            out[at:end] = int(bits[place : place + word], 2) & 255
            place += word
        else:
            words = [int(bits[start : start + word], 2) & 255 for start in range(place, place + (end - at) * word, word)]
            out[at:end] = words
            place += (end - at) * word
        at = end
    return out
