"""Run an ONNX image classifier on one thread, as the target of the model's process. It needs the `infer` extra.

See `catchment.runtime.worker.child` for the process itself.
"""

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec

from edge_agent.errors import ConfigError, ModelError, ModelUnfitError, UnreadablePictureError
from edge_agent.models.config import DECODED, GoldenRequest, LoadOptions, Request
from schemas.model import ImageInput, ModelSpec, golden_input
from schemas.picture_format import HEAD_BYTES, PictureFormat, picture_format

try:
    import numpy as np
    import onnxruntime
    from PIL import Image
except ImportError as error:  # pragma: no cover  # the bare install
    raise ConfigError(f"a model is configured, but {error.name} is missing; install catchment[infer]") from error

MAX_PICTURE_PIXELS = 100_000_000
_TYPES = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(double)": np.float64}
_NO_MEMORY = ("bad_alloc", "bad allocation", "failed to allocate", "out of memory")
_QUIET = 4  # fatal only: the runtime writes to standard error by itself


class Classifier:
    """One loaded model.

    Args:
        path: the ONNX file.
        spec: what the signed metadata say of it.
        labels: what the answers mean here; empty: as `spec` says.

    Raises:
        ModelUnfitError: it does not load, or does not take or answer what its metadata say.
    """

    def __init__(self, path: Path, spec: ModelSpec, labels: tuple[str, ...] = ()) -> None:
        self.spec = spec
        self._labels = labels or spec.labels
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1  # the device has other work: one thread is this model's budget
        options.inter_op_num_threads = 1
        options.log_severity_level = _QUIET
        options.enable_cpu_mem_arena = False  # flat memory matters more here than speed
        try:
            self._session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            _raise_if_out_of_memory(error)
            raise ModelUnfitError(f"{spec.name} version {spec.version} does not load: {error}") from error
        self._input, self._type = self._chosen_input()
        self._output = self._chosen_output()

    def _chosen_input(self) -> tuple[str, Any]:
        inputs = self._session.get_inputs()
        kind = _TYPES.get(inputs[0].type) if len(inputs) == 1 else None
        if kind is None:
            raise ModelUnfitError(f"{self.spec.name}: needs one input of floating numbers, has {[i.type for i in inputs]}")
        wanted, given = inputs[0].shape, self.spec.input.shape
        fits = len(wanted) == len(given) and all(
            not isinstance(size, int) or size == mine for size, mine in zip(wanted, given, strict=True)
        )
        if not fits:
            raise ModelUnfitError(f"{self.spec.name}: its input is {wanted}, its metadata say {list(given)}")
        return inputs[0].name, kind

    def _chosen_output(self) -> str:
        for output in self._session.get_outputs():
            if output.type in _TYPES and self.spec.output in ("", output.name):
                return str(output.name)
        raise ModelUnfitError(f"{self.spec.name}: has no output {self.spec.output!r} of floating numbers")

    def answers_to_golden(self) -> list[float]:
        """The answers to the golden input.

        Raises:
            ModelError: the model fails on it.
        """
        shape = self.spec.input.shape
        return self._run(np.asarray(golden_input(math.prod(shape)), dtype=self._type).reshape(shape))

    def predict(self, tensor: Any) -> tuple[str, float]:
        """The label of a picture and how sure the model is, 0..1.

        Args:
            tensor: the picture, as `tensor` gives it.

        Raises:
            ModelError: the model fails on it.
        """
        answers = self._run(tensor)
        if self.spec.softmax:
            answers = _softmax(answers)
        if not all(map(math.isfinite, answers)):
            raise ModelError(f"{self.spec.name} version {self.spec.version} answers with numbers that are not finite")
        best = max(range(len(answers)), key=answers.__getitem__)
        label = self._labels[best] if best < len(self._labels) else str(best)
        return label, min(1.0, max(0.0, answers[best]))

    def tensor(self, payload: bytes | Path) -> Any:
        """The picture as the model takes it.

        Raises:
            UnreadablePictureError: the picture cannot be decoded.
        """
        try:
            pixels = self._pixels(payload)
        except UnreadablePictureError:
            raise
        except (Exception, MemoryError) as error:
            # A decoder that meets hostile bytes raises anything, and one that meets a large picture takes what it claims.
            raise UnreadablePictureError(f"a picture cannot be decoded: {type(error).__name__}: {error}") from error
        return as_tensor(pixels, self.spec.input).astype(self._type)

    def _pixels(self, payload: bytes | Path) -> Any:
        wanted = self.spec.input
        with io.BytesIO(payload) if isinstance(payload, bytes) else payload.open("rb") as file:
            kind = picture_format(file.read(HEAD_BYTES))
            if kind is None:
                raise UnreadablePictureError(f"not a picture; {', '.join(PictureFormat)} are read")
            file.seek(0)
            with Image.open(file, formats=(kind.upper(),)) as picture:
                if picture.width * picture.height > MAX_PICTURE_PIXELS:
                    raise UnreadablePictureError(f"a picture of {picture.width} x {picture.height} px is too large for the model")
                mode = "L" if wanted.colour == "grey" else "RGB"
                picture.draft(mode, (wanted.width, wanted.height))
                # Converting to the mode it has already would copy the whole picture.
                plain: Image.Image = picture if picture.mode == mode else picture.convert(mode)
                small = plain.resize((wanted.width, wanted.height), Image.Resampling.BILINEAR)
        return np.asarray(small, dtype=np.float32)

    def _run(self, tensor: Any) -> list[float]:
        try:
            (found,) = self._session.run([self._output], {self._input: tensor})
            answers = np.asarray(found, dtype=np.float64).reshape(-1)
        except Exception as error:
            # The runtime's exceptions share no base but Exception.
            _raise_if_out_of_memory(error)
            raise ModelError(f"{self.spec.name} version {self.spec.version} fails: {error}") from error
        if not answers.size:
            raise ModelError(f"{self.spec.name} version {self.spec.version} answers nothing")
        return [float(answer) for answer in answers]


def _raise_if_out_of_memory(error: Exception) -> None:
    """The runtime reports memory that it was refused as one of its own exceptions, distinguished by their text."""
    if isinstance(error, MemoryError) or any(words in str(error).lower() for words in _NO_MEMORY):
        raise MemoryError from error


def as_tensor(pixels: Any, wanted: ImageInput) -> Any:
    """Pixels (height, width[, 3]) of 0..255 as the input tensor of one picture."""
    planes = pixels.reshape(wanted.height, wanted.width, wanted.channels)
    if wanted.colour == "bgr":
        planes = planes[:, :, ::-1]
    planes = planes * np.float32(wanted.scale)
    if wanted.mean:
        planes = planes - np.asarray(wanted.mean, dtype=np.float32)
    if wanted.std:
        planes = planes / np.asarray(wanted.std, dtype=np.float32)
    if wanted.layout == "nchw":
        planes = planes.transpose(2, 0, 1)
    return np.ascontiguousarray(planes).reshape(wanted.shape)


def _softmax(answers: list[float]) -> list[float]:
    top = max(answers)
    powers = [math.exp(answer - top) for answer in answers]
    return [power / sum(powers) for power in powers]


def open_classifier(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Load the model that the options name.

    Raises:
        ModelUnfitError: it does not load.
        MemoryError: it needs more than the process may have.
    """
    given = msgspec.msgpack.decode(options, type=LoadOptions)
    classifier = Classifier(Path(given.path), given.spec, given.labels)

    def handle(body: bytes) -> bytes:
        request = msgspec.msgpack.decode(body, type=Request)
        if isinstance(request, GoldenRequest):
            return msgspec.msgpack.encode(classifier.answers_to_golden())
        tensor = classifier.tensor(Path(request.path) if request.path else request.body)
        note(DECODED)
        return msgspec.msgpack.encode(classifier.predict(tensor))

    return handle
