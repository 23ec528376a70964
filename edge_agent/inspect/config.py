"""`[[source.inspect]]`: columns of the contract that the device computes itself."""

from collections.abc import Sequence

import msgspec

from edge_agent.inspect.steps import open_inspector
from schemas.contract import Contract
from schemas.edge_policy import EdgeInspect
from schemas.inspectors import ON_DEVICE, VERSIONS


class InspectConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[source.inspect]]`.

    Attributes:
        use: image or text.
        column: of text: the column whose texts are counted; without it the payload.
    """

    use: str
    column: str = ""

    def __post_init__(self) -> None:
        if self.use not in ON_DEVICE:
            raise ValueError(f"inspect: use {self.use[:80]!r} is none of {', '.join(ON_DEVICE)}")


def asked_for(inspect: Sequence[InspectConfig], contract: Contract) -> tuple[EdgeInspect, ...]:
    """The steps of a source, each tried.

    Raises:
        ConfigError: one cannot run here, or its libraries are not installed.
    """
    steps = tuple(EdgeInspect(each.use, VERSIONS[each.use], each.column) for each in inspect)
    for step in steps:
        open_inspector(step, contract)
    return steps
