"""The signed metadata of a model: its name, its task and input, its answers, and how it is tested.

It is part of the TUF target, so the keys that vouch for the bytes vouch for the labels and the golden answers as well.
"""

import re
from typing import Any, Literal

import msgspec

from schemas.errors import SchemaError
from schemas.ids import encode_json
from schemas.model_origin import ModelOrigin
from schemas.model_tasks import Classify, ModelTask, RowInput
from schemas.rollout import MODEL_NAME

MAX_PIXELS = 16_777_216
# What a device takes, and gives a model, unless it is configured for more.
MAX_MODEL_BYTES = 256 * 1024 * 1024
MODEL_MEMORY_MIB = 192
MODEL_ANSWER_MS = 2_000
MODEL_LOAD_S = 20.0
MAX_GOLDEN = 4_096
MAX_DETAILS_BYTES = 4 * 1024 * 1024
_GOLDEN_STEP = 2_654_435_761  # Knuth's multiplicative constant: neighbouring values are far apart
_GOLDEN_MODULUS = 1 << 32
_CLASSIFY = Classify()  # one object: only this very default is left out on the wire
_OUTPUT = re.compile(r".{0,256}")


class ImageInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a picture becomes the model's input: resized to width x height px, then `(pixel * scale - mean) / std` per channel.

    Attributes:
        fit: "stretch" fills the whole input; "letterbox" keeps the picture's proportions and pads it evenly with `pad`.
        pad: value of the padding, 0 to 255.
    """

    width: int
    height: int
    colour: Literal["rgb", "bgr", "grey"] = "rgb"
    layout: Literal["nchw", "nhwc", "flat"] = "nchw"
    scale: float = 1 / 255
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fit: Literal["stretch", "letterbox"] = "stretch"
    pad: int = 114

    def __post_init__(self) -> None:
        if not 0 <= self.pad <= 255:
            raise SchemaError(f"model input: pad {self.pad} is not within 0 and 255")
        if self.width < 1 or self.height < 1 or self.width * self.height > MAX_PIXELS:
            raise SchemaError(f"model input of {self.width} x {self.height} px is outside 1..{MAX_PIXELS} px")
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (0, self.channels):
                raise SchemaError(f"model input: {name} has {len(values)} values for {self.channels} channels")
        if any(value == 0 for value in self.std):
            raise SchemaError("model input: std must not be 0")

    @property
    def channels(self) -> int:
        """Colour channels: 1 or 3."""
        return 1 if self.colour == "grey" else 3

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape for one picture."""
        if self.layout == "flat":
            return (1, self.width * self.height * self.channels)
        planes = (self.channels, self.height, self.width)
        return (1, *planes) if self.layout == "nchw" else (1, self.height, self.width, self.channels)


class ModelNeeds(msgspec.Struct, frozen=True, omit_defaults=True):
    """What a device must have to run a model, read from its file when it was published.

    Attributes:
        bytes: of the file.
        opsets: operator set -> its version; the empty name is ONNX's own.
        ops: operators that are not ONNX's own, as `domain::name`.
        peak_mib: the most memory that its process took on the publisher's machine; 0: not measured.
    """

    bytes: int = 0
    opsets: dict[str, int] = {}
    ops: tuple[str, ...] = ()
    peak_mib: int = 0


class ModelSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    """One version of one model. Made by `model_spec`, which puts the input where every release finds it.

    Attributes:
        input: of a classifier of stretched pictures, which agents of every release can run. Those of the releases before the
            other tasks take a description without it for malformed, and so do not run what they would misread.
        labels: what each answer means; empty: the answers' numbers.
        output: the output to read; empty: the first of floating numbers.
        softmax: whether the answers are logits that must become shares of 1.
        golden: the answers to the golden input (`golden_input`), as the publisher's machine gave them, of a large output every
            n-th (`golden_step`); empty: only checked to be finite.
        tolerance: how far an answer may be off, absolutely, on another machine.
        origin: where it comes from; None: nobody said.
        task: what the model is for.
        picture: the input of every other model that looks at pictures.
        rows: the input of a model that looks at columns.
        needs: what a device must have to run it; None: unknown.
    """

    name: str
    version: int
    input: ImageInput | None = None
    labels: tuple[str, ...] = ()
    output: str = ""
    softmax: bool = False
    golden: tuple[float, ...] = ()
    tolerance: float = 0.01
    origin: ModelOrigin | None = None
    task: ModelTask = _CLASSIFY
    picture: ImageInput | None = None
    rows: RowInput | None = None
    needs: ModelNeeds | None = None

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name) or self.version < 1 or not _OUTPUT.fullmatch(self.output):
            raise SchemaError(f"model {self.name[:80]!r} version {self.version} is malformed")
        if sum(each is not None for each in (self.input, self.picture, self.rows)) != 1:
            raise SchemaError(f"model {self.name[:80]!r} version {self.version} must say one input: a picture's or columns'")
        if self.input is not None and not is_plain(self.input, self.task):
            raise SchemaError(f"model {self.name[:80]!r} version {self.version}: its input belongs into `picture`")

    @property
    def image(self) -> ImageInput | None:
        """How a picture becomes its input; None: it looks at columns."""
        return self.input or self.picture

    @property
    def shape(self) -> tuple[int, ...]:
        """The input tensor's shape for one sample."""
        found = self.image or self.rows
        assert found is not None, "checked at birth"
        return found.shape


def model_spec(name: str, version: int, image: ImageInput | None, rows: RowInput | None, task: ModelTask) -> ModelSpec:
    """Describe a version, with its input where every release that can run it finds it.

    Raises:
        SchemaError: the name or version is malformed, or there is not one input.
    """
    task = _CLASSIFY if isinstance(task, Classify) else task
    if image is not None and is_plain(image, task):
        return ModelSpec(name, version, image, task=task, rows=rows)
    return ModelSpec(name, version, task=task, picture=image, rows=rows)


def is_plain(image: ImageInput, task: ModelTask) -> bool:
    """Whether agents of every release can run such a model."""
    return isinstance(task, Classify) and image.fit == "stretch"


def golden_step(count: int) -> int:
    """Of so many answers to the golden input, every n-th is kept."""
    return max(1, -(-count // MAX_GOLDEN))


def golden_input(count: int) -> list[float]:
    """`count` numbers in [0, 1), the same on every machine, that touch every weight of a model."""
    return [(index * _GOLDEN_STEP % _GOLDEN_MODULUS) / _GOLDEN_MODULUS for index in range(1, count + 1)]


def model_spec_to_plain(spec: ModelSpec) -> dict[str, Any]:
    """The plain form that goes into TUF metadata. Numbers with a fraction become text: canonical JSON has none."""
    plain: dict[str, Any] = {"catchment": encode_json(spec).decode()}
    return plain


def model_spec_from_plain(custom: object) -> ModelSpec:
    """Read what `model_spec_to_plain` made.

    Raises:
        SchemaError: not a model's description.
    """
    text = custom.get("catchment") if isinstance(custom, dict) else None
    if not isinstance(text, str):
        raise SchemaError("the signed target says nothing of a model (custom.catchment is missing)")
    try:
        return msgspec.json.decode(text, type=ModelSpec)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"the signed target's model description is malformed: {error}") from error


def details_path(name: str, version: int) -> str:
    """Target path of the file with all that is said of a version: labels and golden answers, too."""
    return f"{name}/{version}.json"


def encode_details(spec: ModelSpec) -> bytes:
    """The bytes of that file."""
    return encode_json(spec)


def decode_details(body: bytes) -> ModelSpec:
    """Read what `encode_details` made.

    Raises:
        SchemaError: too large, or not a model's description.
    """
    if len(body) > MAX_DETAILS_BYTES:
        raise SchemaError(f"model details of {len(body):,} bytes are above the limit of {MAX_DETAILS_BYTES:,}")
    try:
        return msgspec.json.decode(body, type=ModelSpec)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"the model's details are malformed: {error}") from error


def details_of(custom: object) -> str | None:
    """The target path of a version's details, as said next to its ONNX file; None: everything is said there."""
    path = custom.get("details") if isinstance(custom, dict) else None
    return path if isinstance(path, str) else None
