"""Waves: how many devices a rollout reaches at a time, which ones, and what a fleet of that size can be promised. Pure.

A wave is a count of devices, not a share of hash buckets: the first one has at least one device, however small the fleet is.
"""

import hashlib
import math
from collections.abc import Iterable, Sequence

from pipelines.errors import RefusedError
from pipelines.rollout.gates import failures_that_halt

WAVES = (0.01, 0.02, 0.05, 0.10, 0.25, 0.50, 1.0)
# Places are whole numbers that every reader of JSON keeps exactly.
PLACES = 1 << 53
EVERYONE = PLACES


def place(rollout: str, device: str) -> int:
    """A device's place in the order in which a rollout reaches devices, 0..2^53-1; another in each rollout."""
    digest = hashlib.sha256(f"wave/{rollout}/{device}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 11


def check_waves(waves: Sequence[float]) -> None:
    """See to it that waves grow and end with everyone.

    Raises:
        RefusedError: they do not.
    """
    if not waves or list(waves) != sorted(set(waves)) or waves[0] <= 0 or waves[-1] != 1.0:
        raise RefusedError("waves are growing shares of the cohort that end with 100%, as in 1%,10%,100%")


def parse_waves(text: str) -> tuple[float, ...]:
    """Read `1%,10%,100%`; `none`: everyone at once.

    Raises:
        RefusedError: not such shares, or they do not grow to 100%.
    """
    if text == "none":
        return ()
    try:
        waves = tuple(float(part.strip().removesuffix("%")) / 100 for part in text.split(","))
    except ValueError as error:
        raise RefusedError(f"waves {text[:80]!r}: give growing shares that end with 100%, as in 1%,10%,100%, or none") from error
    check_waves(waves)
    return waves


def wave_counts(waves: Sequence[float], devices: int) -> list[int]:
    """How many devices each wave has reached in all: every wave adds at least one; fewer waves where there are few devices."""
    counts: list[int] = []
    for share in waves:
        count = min(devices, max(1, math.ceil(share * devices - 1e-9)))
        if devices and (not counts or count > counts[-1]):
            counts.append(count)
    return counts


def limit_for(rollout: str, devices: Iterable[str], count: int) -> int:
    """The place below which exactly `count` of the devices lie; all devices: also those that nobody has heard of yet."""
    places = sorted(place(rollout, device) for device in devices)
    return EVERYONE if count >= len(places) else places[count]


def promised_exposure(counts: Sequence[int], bad_share: float, confidence: float = 0.95) -> int:
    """How many devices a bad model reaches at most, with that confidence, before failing devices alone halt it.

    Args:
        counts: devices of each wave, as `wave_counts` gives them.
        bad_share: share of the devices on which the model fails.
        confidence: 0..1.
    """
    alive = {0: 1.0}  # failures so far, and how likely they are with no halt before
    reached, before, stopped = 0, 0, 0.0
    for count in counts:
        alive = _one_more_wave(alive, count - before, bad_share)
        limit = failures_that_halt(count)
        stopped += sum(chance for failures, chance in alive.items() if failures >= limit)
        alive = {failures: chance for failures, chance in alive.items() if failures < limit}
        reached, before = count, count
        if stopped >= confidence:
            break
    return reached


def _one_more_wave(alive: dict[int, float], devices: int, bad_share: float) -> dict[int, float]:
    """The failures after `devices` more devices. The far tails, below 1e-9, are left out."""
    fresh = {failures: chance for failures in range(devices + 1) if (chance := _binomial(devices, failures, bad_share)) > 1e-9}
    after: dict[int, float] = {}
    for had, chance in alive.items():
        for more, likely in fresh.items():
            after[had + more] = after.get(had + more, 0.0) + chance * likely
    return after


def _binomial(trials: int, hits: int, share: float) -> float:
    logs = math.lgamma(trials + 1) - math.lgamma(hits + 1) - math.lgamma(trials - hits + 1)
    return math.exp(logs + hits * math.log(share) + (trials - hits) * math.log1p(-share))
