"""`[[source.inspect]]`: columns of the contract that the device computes itself."""

import msgspec

from schemas.inspectors import ON_DEVICE


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
            raise ValueError(f"inspect: use {self.use[:80]!r} is not one of {', '.join(ON_DEVICE)}")
