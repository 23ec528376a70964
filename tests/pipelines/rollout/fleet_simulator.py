"""A fleet in numbers, and the decision code of the model server on it: one rollout, from its first wave to its end.

Devices differ: each one's chance of a failing answer is drawn from a beta distribution, with a correlation within a device.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from pipelines.rollout.gates import FleetDrift, VersionCounts, WaveEvidence, WaveRules, decide, error_evidence
from pipelines.rollout.waves import WAVES, wave_counts

STEP_S = 60.0
PROBATION_STEPS = 10


@dataclass(frozen=True)
class Fleet:
    """Devices of a fleet, and what the new version does on them.

    Attributes:
        device_failure: chance that a device gives the version up.
        errors: chance of a failing answer of the version before, over all devices.
        error_ratio: how many times as frequent failures are with the new one.
        correlation: of failing answers within a device.
        pictures: a device answers in a step.
        past: pictures that each device answered with the version before.
        night: how many times as frequent failures become for everyone during the rollout.
        disagreement: share of pictures on which old and new differ; 0: no candidate ran next to the old one.
        fall: by how much the new version is right less often.
        judged: disagreements that people judge in a step.
    """

    devices: int
    device_failure: float = 0.01
    errors: float = 0.01
    error_ratio: float = 1.0
    correlation: float = 0.02
    pictures: int = 60
    past: int = 2_000
    night: float = 1.0
    disagreement: float = 0.0
    fall: float = 0.0
    judged: int = 20


@dataclass(frozen=True)
class Outcome:
    """How a rollout ended: whether it was halted, why, and how many devices it had reached."""

    is_halted: bool
    reason: str
    reached: int


def roll_out(fleet: Fleet, rng: np.random.Generator, waves: Sequence[float] = WAVES, min_attempts: int = 5_000) -> Outcome:
    """Run one rollout."""
    rates = _rates(fleet, rng)
    fails = rng.random(fleet.devices) < fleet.device_failure
    # Within probation at any time: some fail in the self-test, some in the last minute.
    fails_after = rng.integers(0, PROBATION_STEPS, fleet.devices)
    counts = wave_counts(waves, fleet.devices)
    before = rng.binomial(fleet.past, rates)
    told_at = np.full(fleet.devices, np.iinfo(np.int64).max)
    told_at[: counts[0]] = 0
    new_attempts, new_failures = np.zeros(fleet.devices), np.zeros(fleet.devices)
    beside_attempts, beside_failures = np.zeros(fleet.devices), np.zeros(fleet.devices)
    wave, opened, old_right, new_right = 0, 0, 0, 0
    rules = WaveRules(600.0, min_attempts, 400 if fleet.disagreement else 0)
    for step in range(20_000):
        reached = counts[wave]
        age = step - told_at[:reached]
        failed = fails[:reached] & (age > fails_after[:reached])
        runs = ~failed
        errors = np.minimum(rates * fleet.night, 1)
        new_attempts[:reached] += fleet.pictures * runs
        new_failures[:reached] += rng.binomial(fleet.pictures, np.minimum(errors[:reached] * fleet.error_ratio, 1)) * runs
        beside_attempts[reached:] += fleet.pictures
        beside_failures[reached:] += rng.binomial(fleet.pictures, errors[reached:])
        if fleet.disagreement:
            judged = min(fleet.judged, int(fleet.disagreement * fleet.pictures * runs.sum()))
            right = int(rng.binomial(judged, 0.5 + fleet.fall / fleet.disagreement / 2))
            old_right, new_right = old_right + right, new_right + judged - right
        others = slice(reached, None)
        drift = _drift(before[others], fleet.past, beside_failures[others], beside_attempts[others])
        evidence = WaveEvidence(
            reached=reached,
            active=int((runs & (age >= PROBATION_STEPS)).sum()),
            on_probation=int((runs & (age < PROBATION_STEPS)).sum()),
            failed=int(failed.sum()),
            counted=reached,
            died=int(failed.sum()),
            attempts=int(new_attempts[:reached].sum()),
            errors=error_evidence(
                VersionCounts(np.full(reached, fleet.past), before[:reached]),
                VersionCounts(new_attempts[:reached], new_failures[:reached]),
                drift,
            ),
            old_right=old_right,
            new_right=new_right,
        )
        # What holds for a person is resumed every time here: that reaches the most devices.
        rules = replace(rules, accepted_failures=int(failed.sum()))
        decision = decide(evidence, rules, (step - opened) * STEP_S)
        if decision.action == "halt":
            return Outcome(True, decision.reason, reached)
        if decision.action == "widen":
            if wave + 1 == len(counts):
                return Outcome(False, "", reached)
            wave, opened = wave + 1, step
            told_at[reached : counts[wave]] = step
    raise AssertionError(f"the rollout neither ended nor halted: {decision}")


def _rates(fleet: Fleet, rng: np.random.Generator) -> np.ndarray:
    if not fleet.correlation:
        return np.full(fleet.devices, fleet.errors)
    size = (1 - fleet.correlation) / fleet.correlation
    return rng.beta(fleet.errors * size, (1 - fleet.errors) * size, fleet.devices)


def _drift(before: np.ndarray, past: int, failures: np.ndarray, attempts: np.ndarray) -> FleetDrift:
    was, now, asked = float(before.sum()), float(failures.sum()), float(attempts.sum())
    if not was or not now:
        return FleetDrift()
    return FleetDrift(was, now, now / asked / (was / (past * len(before))))
