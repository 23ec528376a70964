"""What judges whole tables by rules: the tagger itself, or one whose risky policies run where they can be killed."""

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from pipelines.policy.engine import CompiledRule
from schemas.contract import Contract


class Judge(Protocol):
    """Rules for the rows of one contract."""

    @property
    def contract(self) -> Contract:
        """Of the rows."""
        ...

    @property
    def rules(self) -> tuple[CompiledRule, ...]:
        """The rules, in the order of the verdicts."""
        ...

    @property
    def columns(self) -> frozenset[str]:
        """What the rules read."""
        ...

    def verdicts(self, table: pa.Table) -> Sequence[npt.NDArray[np.bool_]]:
        """For each rule, whether it is true for each row."""
        ...
