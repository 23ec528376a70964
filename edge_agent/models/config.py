"""Which model a device runs, on what, and whose word it trusts."""

import msgspec

from edge_agent.errors import ConfigError
from schemas.ids import StreamName
from schemas.rollout import MODEL_NAME


class ModelConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One model of a device.

    Attributes:
        name: the model's name in the repository.
        root: path of the trusted TUF root metadata (`root.json`), brought to the device with its certificate.
        streams: the streams whose pictures it looks at.
        probation_s: how long a new version is watched before the old one is given up.
        self_test: whether a new version must answer the golden input before it is activated.
        labels: what its answers mean; empty: as the signed metadata say.
        max_bytes: the largest model this device takes.
        max_failures: so many failed inferences in a row during probation bring the old version back.
        max_starts: so many starts of the agent during one probation do so, too: the model may be what kills it.
    """

    name: str
    root: str
    streams: tuple[str, ...]
    probation_s: float = 600.0
    self_test: bool = True
    labels: tuple[str, ...] = ()
    max_bytes: int = 256 * 1024 * 1024
    max_failures: int = 5
    max_starts: int = 3

    def __post_init__(self) -> None:
        if not MODEL_NAME.fullmatch(self.name):
            raise ConfigError(f"model name {self.name[:80]!r} must be of a-z, 0-9, '_' and '-', starting with a letter")
        for stream in self.streams:
            StreamName(stream)
        if self.probation_s < 0 or min(self.max_bytes, self.max_failures, self.max_starts) < 1:
            raise ConfigError(f"model {self.name}: probation_s, max_bytes, max_failures and max_starts must be positive")
