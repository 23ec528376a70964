"""What a model is for, and the columns that its predictions fill: part of a version's signed metadata.

Boxes are in pixels of the whole picture: x and y of the upper left corner, width, height. A mask is a list of numbers: its width,
its height, then pairs of label index and run length, row by row.
"""

from collections.abc import Mapping
from typing import Literal, TypeAlias

import msgspec

from schemas.errors import SchemaError

MAX_BOXES = 1_000
MAX_VALUES = 4_096
MAX_MASK_RUNS = 100_000
MAX_ROW_COLUMNS = 1_024


class Classify(msgspec.Struct, frozen=True, tag="classify"):
    """One score for each label; the best one is the answer."""


class Detect(msgspec.Struct, frozen=True, tag="detect", omit_defaults=True):
    """Boxes, with a label and a score each.

    Attributes:
        layout: how the outputs are laid out. `yolo`: (1, 4 + labels, boxes). `yolo-objectness`: (1, boxes, 5 + labels), the
            fifth says whether anything is there. `boxes-scores`: two outputs, (1, boxes, 4) and (1, boxes, labels). `rows`:
            (1, boxes, 6), of box, score and label index, overlaps already removed.
        boxes: the output with the boxes; empty: the first one of the right shape.
        scores: of `boxes-scores`: the output with the scores.
        form: four numbers of a box: centre, width and height, or two corners.
        unit: pixels of the model's input, or shares of it.
        has_background: whether the first label means that nothing is there.
        min_score: boxes below it are left out.
        max_overlap: of two boxes of a label that overlap by more (intersection over union), the better one stays.
        max_boxes: so many of the best boxes stay.
    """

    layout: Literal["yolo", "yolo-objectness", "boxes-scores", "rows"]
    boxes: str = ""
    scores: str = ""
    form: Literal["centre", "corners"] = "centre"
    unit: Literal["pixels", "shares"] = "pixels"
    has_background: bool = False
    min_score: float = 0.25
    max_overlap: float = 0.45
    max_boxes: int = 300

    def __post_init__(self) -> None:
        if not 0 <= self.min_score <= 1 or not 0 < self.max_overlap <= 1 or not 1 <= self.max_boxes <= MAX_BOXES:
            raise SchemaError(f"detect: min_score and max_overlap are within 0 and 1, max_boxes within 1 and {MAX_BOXES}")


class Segment(msgspec.Struct, frozen=True, tag="segment", omit_defaults=True):
    """A label for each point of a mask: (1, labels, height, width), or (1, 1, height, width) of one label's share.

    Attributes:
        layout: where the labels are.
        threshold: with one channel: from which value on a point has the label 1, else 0.
    """

    layout: Literal["nchw", "nhwc"] = "nchw"
    threshold: float = 0.5


class Regress(msgspec.Struct, frozen=True, tag="regress"):
    """Numbers."""


class Embed(msgspec.Struct, frozen=True, tag="embed", omit_defaults=True):
    """A vector that is near those of similar samples.

    Attributes:
        has_unit_length: whether it is divided by its length.
    """

    has_unit_length: bool = True


ModelTask: TypeAlias = Classify | Detect | Segment | Regress | Embed


class RowInput(msgspec.Struct, frozen=True, omit_defaults=True):
    """How a row becomes the model's input: `(value - mean) / std` of each column, in this order.

    Attributes:
        columns: numbers and booleans of the stream.
        mean: of each column; empty: 0.
        std: of each column; empty: 1.
        fill: taken where a value is absent; empty: not a number, which most trees can take.
    """

    columns: tuple[str, ...]
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    fill: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if not 1 <= len(self.columns) <= MAX_ROW_COLUMNS or len(set(self.columns)) != len(self.columns):
            raise SchemaError(f"model input: 1 to {MAX_ROW_COLUMNS} columns, each once")
        for name, values in (("mean", self.mean), ("std", self.std), ("fill", self.fill)):
            if len(values) not in (0, len(self.columns)):
                raise SchemaError(f"model input: {name} has {len(values)} values for {len(self.columns)} columns")
        if any(value == 0 for value in self.std):
            raise SchemaError("model input: std must not be 0")

    @property
    def shape(self) -> tuple[int, ...]:
        """The tensor's shape for one row."""
        return (1, len(self.columns))


SHADOW_LABEL = "shadow_label"
"""The column with a candidate's label where it differs from the one of the version that answers."""
MODEL_COLUMNS = ("model_name", "model_version")
_BY_TASK: Mapping[type[ModelTask], tuple[str, ...]] = {
    Classify: ("predicted_label", "predicted_score"),
    Detect: ("predicted_label", "predicted_score", "predicted_boxes"),
    Segment: ("predicted_label", "predicted_mask"),
    Regress: ("predicted_value", "predicted_values"),
    Embed: ("predicted_embedding",),
}


def prediction_columns(task: ModelTask) -> tuple[str, ...]:
    """The columns that a model's predictions fill, its name and version included."""
    return (*MODEL_COLUMNS, *_BY_TASK[type(task)])


_BY_ANY_TASK = (MODEL_COLUMNS, *_BY_TASK.values(), (SHADOW_LABEL,))
PREDICTION_COLUMNS = tuple(dict.fromkeys(name for names in _BY_ANY_TASK for name in names))
