"""Which of several bridges lands a message: a device belongs to one of them, by a hash of its id. No IO."""

import hashlib
from dataclasses import dataclass

from pipelines.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Partition:
    """One bridge's share of the devices.

    Every bridge hears everything and keeps its share. A shared subscription would send each message only once, but then
    what a bridge that is down has been given waits for it alone, one device's order is torn over several bridges, and the
    parts of one large payload meet in different processes.

    Args:
        index: which share, counted from 0.
        count: into how many shares the devices are split.

    Raises:
        ConfigError: there is no such share.
    """

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise ConfigError(
                f"bridge.partition {self.index} of bridge.partitions {self.count}: give the bridges 0 to partitions - 1"
            )

    def owns(self, name: str) -> bool:
        """Whether a device is in this share; a topic that names no device stands for itself."""
        if self.count == 1:
            return True
        return int.from_bytes(hashlib.sha256(name.encode("utf-8", "replace")).digest()[:8], "big") % self.count == self.index
