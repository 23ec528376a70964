"""Which samples a share keeps: decided by a hash of the sample itself, so that the same sample always fares the same. Pure."""

from collections.abc import Callable, Sequence
from hashlib import blake2b

from edge_agent.sources.api import SampleBatch

_SPAN = 2**64


def chance(key: bytes, row: Sequence[object]) -> float:
    """A number from 0 to below 1, evenly spread over samples and fixed for each.

    A larger share keeps all that a smaller one does, because both compare the same number.
    """
    digest = blake2b(repr(row).encode("utf-8", "surrogatepass"), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "big") / _SPAN


def chances(device: str, stream: str, batch: SampleBatch) -> Callable[[int], float]:
    """The number of each row: a hash of device, stream, event time and values. Payloads are not read for it."""
    key = blake2b(f"{device}/{stream}".encode(), digest_size=16).digest()
    columns = [batch.columns[name] for name in sorted(batch.columns)]

    def of(row: int) -> float:
        return chance(key, (batch.event_time_us[row], *(values[row] for values in columns)))

    return of
