"""Inspect pictures: statistics, the perceptual hash, what the camera wrote into them, and what an ONNX model says of them.

Pictures are decoded to arrays of a bounded size: 512 px, so that figures mean the same for every camera. A picture that is too
large is refused by its header, before a pixel is decoded.
"""

import re
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyvips

from catchment.picture_statistics import picture_statistics
from pipelines.errors import RefusedError, UninspectableError, UnreadableImageError
from pipelines.imaging.picture_loader import open_header, shrink
from schemas.errors import SchemaError
from schemas.inspectors import SIDE_PX
from schemas.model import ImageInput
from schemas.policy import InspectStep

Pixels = npt.NDArray[np.uint8]
MAX_PIXELS = 400_000_000
Facts = tuple[int, int, float, float, float, float, float, str]

ExifFacts = tuple[
    str | None, str | None, str | None, str | None, int | None, float | None, float | None, int | None, float | None, float | None
]
_MAX_TEXT = 200
_VALUE = re.compile(r"(?s)(?P<twice>.*), (?P<type>[A-Za-z]+), \d+ components, \d+ bytes\)")
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_QUIET = 4


def decoded(body: bytes, width: int, height: int, size: str = "down", bands: int = 3) -> tuple[Pixels, int, int]:
    """A picture no larger than `width` x `height` px as rows x columns x bands, and the size it has in full.

    Args:
        body: JPEG, PNG, TIFF, WebP or GIF.
        width: px.
        height: px.
        size: "down" keeps the proportions and never enlarges; "force" gives exactly this size.
        bands: 3 for sRGB, 1 for grey.

    Raises:
        UninspectableError: not a picture, or one too large.
    """
    try:
        head = open_header(body, MAX_PIXELS)
        small: Any = shrink(body, width, height, MAX_PIXELS, size=size, no_rotate=True)
        if small.hasalpha():
            small = small.flatten(background=0)
        wanted = "srgb" if bands == 3 else "b-w"
        if small.interpretation != wanted or small.format != "uchar":
            small = small.colourspace(wanted).cast("uchar")
        raw = small.write_to_memory()
    except UnreadableImageError as error:
        raise UninspectableError(str(error)) from error
    except pyvips.Error as error:
        raise UninspectableError(f"not a picture: {' '.join(str(error).split())[:120]}") from error
    return np.ndarray(buffer=raw, dtype=np.uint8, shape=(small.height, small.width, small.bands)), head.width, head.height


def fields(body: bytes) -> dict[str, str]:
    """The fields of a picture's header, by libvips' names; nothing is decoded.

    Raises:
        UninspectableError: not a picture.
    """
    try:
        head = open_header(body, MAX_PIXELS)
        names = [name for name in head.get_fields() if name.startswith("exif-ifd")]
        return {name: str(head.get(name)) for name in names}
    except UnreadableImageError as error:
        raise UninspectableError(str(error)) from error
    except pyvips.Error as error:
        raise UninspectableError(f"not a picture: {' '.join(str(error).split())[:120]}") from error


def image_facts(body: bytes) -> Facts:
    """Width, height, luma mean and contrast, sharpness, entropy, colourfulness and hash: the first image columns, in order.

    Raises:
        UninspectableError: not a picture, or one too large.
    """
    pixels, width, height = decoded(body, SIDE_PX, SIDE_PX)
    return width, height, *picture_statistics(pixels)


def exif_facts(body: bytes) -> ExifFacts:
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


class ModelInspector:
    """One loaded model.

    Options of the step: kind (classification, embedding, detection), width, height, colour, layout, scale, mean, std (by
    comma), labels (by comma), softmax, score (the least that counts in a detection), threads.

    Raises:
        RefusedError: it does not load, or does not take what the options say.
    """

    def __init__(self, path: Path, step: InspectStep) -> None:
        options = step.options
        self._name, self._kind = step.use, str(options.get("kind", "classification"))
        self._labels = tuple(filter(None, str(options.get("labels", "")).split(",")))
        self._softmax, self._score = bool(options.get("softmax", False)), float(options.get("score", 0.5))
        self._session = _session(path, int(options.get("threads", 1)))
        (taken,) = self._session.get_inputs() if len(self._session.get_inputs()) == 1 else (None,)
        if taken is None or taken.type not in _TYPES:
            raise RefusedError(f"inspector {step.use}: the model must have one input of floating numbers")
        self._input, self._type = taken.name, _TYPES[taken.type]
        self._image = _image_input(step, taken.shape)

    def look(self, body: bytes) -> tuple[Any, ...]:
        """The step's columns for one picture.

        Raises:
            UninspectableError: not a picture, or the model fails on it.
        """
        try:
            answers = self._session.run(None, {self._input: self.tensor(body)})
        except UninspectableError:
            raise
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            raise UninspectableError(f"the model fails: {str(error)[:200]}") from error
        if self._kind == "embedding":
            vector = np.asarray(_floats(answers), "<f4").ravel()
            return vector.tobytes(), float(np.linalg.norm(vector.astype(np.float64)))
        return self._detected(answers) if self._kind == "detection" else self._classified(_floats(answers))

    def tensor(self, body: bytes) -> Any:
        """The picture as the model takes it."""
        wanted = self._image
        pixels, _width, _height = decoded(body, wanted.width, wanted.height, "force", wanted.channels)
        if pixels.shape[2] != wanted.channels:
            pixels = np.repeat(pixels[:, :, :1], wanted.channels, axis=2)
        numbers = pixels[:, :, ::-1].astype(np.float32) if wanted.colour == "bgr" else pixels.astype(np.float32)
        numbers *= np.float32(wanted.scale)
        if wanted.mean:
            numbers -= np.asarray(wanted.mean, np.float32)
        if wanted.std:
            numbers /= np.asarray(wanted.std, np.float32)
        if wanted.layout == "nchw":
            numbers = numbers.transpose(2, 0, 1)
        return np.ascontiguousarray(numbers, self._type).reshape(wanted.shape)

    def _classified(self, answers: Any) -> tuple[str | None, float | None, float | None]:
        scores = np.asarray(answers, np.float64).ravel()
        if self._softmax and scores.size:
            scores = np.exp(scores - scores.max())
            scores /= scores.sum()
        if not scores.size or not np.isfinite(scores).all():
            raise UninspectableError("the model's answer is empty or not finite")
        order = np.argsort(scores)[::-1]
        best, second = float(scores[order[0]]), float(scores[order[1]]) if scores.size > 1 else 0.0
        return self._label(int(order[0])), best, best - second

    def _detected(self, answers: Sequence[Any]) -> tuple[int, str | None, float | None]:
        named = dict(zip((output.name for output in self._session.get_outputs()), answers, strict=True))
        if "scores" not in named:
            raise UninspectableError("a detection model needs an output named scores, and labels if it tells them")
        scores = np.asarray(named["scores"], np.float64).ravel()
        if not scores.size:
            return 0, None, None
        best = int(scores.argmax())
        labels = np.asarray(named.get("labels", np.zeros(scores.size))).ravel()
        return int((scores >= self._score).sum()), self._label(int(labels[best])), float(scores[best])

    def _label(self, index: int) -> str:
        return self._labels[index] if index < len(self._labels) else str(index)


def _floats(answers: Sequence[Any]) -> Any:
    for answer in answers:
        if isinstance(answer, np.ndarray) and answer.dtype.kind == "f":
            return answer
    raise UninspectableError("the model has no output of floating numbers")


def _session(path: Path, threads: int) -> Any:
    try:
        import onnxruntime  # noqa: PLC0415  # the infer extra: only a policy with a model needs it
    except ImportError as error:
        raise RefusedError("a policy inspects with a model, which needs onnxruntime; install catchment[infer]") from error
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _QUIET
    options.intra_op_num_threads = max(1, threads)
    options.inter_op_num_threads = 1
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:
        # The runtime's exceptions share no base but Exception.
        raise RefusedError(f"the model does not load: {error}") from error


def _image_input(step: InspectStep, shape: Sequence[Any]) -> ImageInput:
    """Combine the options with the input's shape."""
    options = step.options
    layout: Any = options.get("layout", "nhwc" if len(shape) == 4 and shape[3] in (1, 3) else "nchw")
    places = (2, 1, 3) if layout == "nhwc" else (3, 2, 1)
    known = [shape[place] if len(shape) == 4 and isinstance(shape[place], int) else 0 for place in places]
    colour: Any = options.get("colour", "grey" if known[2] == 1 else "rgb")
    try:
        return ImageInput(
            int(options.get("width", known[0])),
            int(options.get("height", known[1])),
            colour,
            layout,
            float(options.get("scale", 1 / 255)),
            _numbers(options.get("mean", "")),
            _numbers(options.get("std", "")),
        )
    except (SchemaError, ValueError) as error:
        raise RefusedError(f"inspector {step.use}: {error}; give width and height in its options") from error


def _numbers(setting: object) -> tuple[float, ...]:
    return tuple(float(part) for part in str(setting).split(",") if part.strip())
