"""The golden input: what a model must answer before it may look at real pictures."""

import math
from collections.abc import Sequence
from typing import Protocol

from edge_agent.errors import ModelError, ModelUnfitError
from edge_agent.models.errors import ModelDiedError, ModelStoppedError
from schemas.model import ModelSpec


class Testable(Protocol):
    """A loaded model."""

    @property
    def spec(self) -> ModelSpec:
        """What the signed metadata say of it."""
        ...

    def answers_to_golden(self) -> list[float]:
        """Its answers to the golden input."""
        ...


def check_golden(model: Testable) -> None:
    """Run the model on the golden input.

    Raises:
        ModelUnfitError: it fails, answers with numbers that are not finite, or not what its publisher saw.
        ModelDiedError: its process did not survive it.
        ModelStoppedError: the agent stops.
    """
    name = f"{model.spec.name} version {model.spec.version}"
    try:
        answers = model.answers_to_golden()
    except (ModelDiedError, ModelStoppedError):
        raise
    except ModelError as error:
        raise ModelUnfitError(f"{name} fails on the golden input: {error}") from error
    if not all(map(math.isfinite, answers)):
        raise ModelUnfitError(f"{name} answers the golden input with numbers that are not finite")
    worst = _worst(answers, model.spec.golden)
    if worst > model.spec.tolerance:
        raise ModelUnfitError(f"{name} is off by {worst:.4g} on the golden input; {model.spec.tolerance:.4g} is allowed")


def _worst(answers: Sequence[float], golden: Sequence[float]) -> float:
    if not golden:
        return 0.0
    if len(answers) != len(golden):
        return math.inf
    return max(abs(answer - wanted) for answer, wanted in zip(answers, golden, strict=True))
