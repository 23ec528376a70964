"""How a version of a model does on a device, as sums: pictures, failures, and how long answers took.

Sums since the device began to run the version, or since its agent started: a report that arrives twice adds nothing, because the
newest one replaces the one before.
"""

import math
from typing import Annotated

import msgspec

from schemas.errors import SchemaError

LATENCY_BINS = 64
MAX_PAIRS = 16
_BINS_PER_OCTAVE = 4
_FIRST_EXPONENT = -4  # the first bin ends at 2**-4 ms
Count = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]


class ModelTally(msgspec.Struct, frozen=True):
    """Sums of one version.

    Attributes:
        version: of the model.
        inferences: pictures that it answered.
        failures: pictures that it failed on, its process's ends among them.
        deaths: how often its process ended.
        latency: (bin, answers) of `latency_bin`, of bins that hold any, ascending.
        compared: pictures that a candidate answered as well, next to this version.
        disagreed: of those, the ones with another label.
        pairs: (this version's label, the candidate's, pictures) of those, the most frequent ones.
    """

    version: int
    inferences: Count = 0
    failures: Count = 0
    deaths: Count = 0
    latency: tuple[tuple[int, Count], ...] = ()
    compared: Count = 0
    disagreed: Count = 0
    pairs: tuple[tuple[str, str, Count], ...] = ()

    def __post_init__(self) -> None:
        bins = [number for number, _ in self.latency]
        if bins != sorted(set(bins)) or not all(0 <= number < LATENCY_BINS for number in bins):
            raise SchemaError(f"a latency histogram has bins 0..{LATENCY_BINS - 1}, each once and ascending")
        if len(self.pairs) > MAX_PAIRS or any(len(label) > 64 for *labels, _ in self.pairs for label in labels):
            raise SchemaError(f"a tally names at most {MAX_PAIRS} pairs of labels, of 64 characters each")

    @property
    def attempts(self) -> int:
        """Pictures that it answered or failed on."""
        return self.inferences + self.failures

    def slower_than(self, limit_ms: float) -> int:
        """Answers in bins that lie wholly above a limit."""
        return sum(count for number, count in self.latency if number and bin_start_ms(number) >= limit_ms)


def latency_bin(milliseconds: float) -> int:
    """The bin of a duration: four to an octave, from 1/16 ms to about 3.4 s; what lies outside is in the outermost ones."""
    if milliseconds <= 0:
        return 0
    number = 1 + math.floor(_BINS_PER_OCTAVE * (math.log2(milliseconds) - _FIRST_EXPONENT))
    return min(max(number, 0), LATENCY_BINS - 1)


def bin_start_ms(number: int) -> float:
    """Where a bin begins, in milliseconds; the first one at 0."""
    return 0.0 if number == 0 else 2.0 ** (_FIRST_EXPONENT + (number - 1) / _BINS_PER_OCTAVE)
