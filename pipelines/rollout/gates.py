"""The gates of a rollout: by what its devices report, it goes on, holds, or halts. Pure.

Every signal is a sequential test: an e-value that grows with the evidence against the model, and halts the rollout at
`signals / FALSE_HALT_RATE` (Ville: a good model ever reaches that with at most that probability, however often one looks). Five
signals share a false-halt rate of 1 %. E-values of devices are products over devices in the order in which they started; a device
on probation counts as good until it fails, so the product is never larger than the one that waits for all of them.

Quality is compared within a device: devices differ, and a rate pooled over devices halts good models (8 % of them at an
intra-device correlation of 0.005).
"""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

FALSE_HALT_RATE = 0.01
SIGNALS = ("failed", "slow", "died", "errors", "shadow")
HALT_AT = math.log(len(SIGNALS) / FALSE_HALT_RATE)
# A device that fails by chance, and the share of failing devices that must be seen.
CHANCE_SHARE, BAD_SHARE = 0.01, 0.10
# Of a model whose errors are this many times as frequent the e-value grows fastest.
ERROR_RATIO = 2.0
# Of the pictures on which old and new disagree, the share on which the old one is right where the new one is worse.
OLD_RIGHT_SHARE = 0.65
_SLOW_SHARE, _MIN_TIMED = 0.05, 100
_DRIFT_SIGMAS = 2.58
_PRIOR = 0.5
_QUORUM, _SETTLED = 0.5, 0.9


@dataclass(frozen=True, slots=True)
class VersionCounts:
    """Pictures that devices tried to answer with a version, and failures among them; one number a device."""

    attempts: "ArrayLike"
    failures: "ArrayLike"


@dataclass(frozen=True, slots=True)
class FleetDrift:
    """Failures of devices that the rollout has not reached: `before` it began, and `since`; and their rates' quotient."""

    before: float = 0.0
    since: float = 0.0
    quotient: float = 1.0

    @property
    def upper(self) -> float:
        """How much more frequent failures became for everyone, at most; infinite where nobody can say."""
        if not self.before or not self.since:
            return math.inf
        return self.quotient * math.exp(_DRIFT_SIGMAS * math.sqrt(1 / self.before + 1 / self.since))


@dataclass(frozen=True, slots=True)
class WaveEvidence:
    """What is known of the devices that a rollout has reached.

    Attributes:
        reached: devices that were ordered the version.
        active: run it and have proved themselves.
        on_probation: run it and have yet to.
        failed: gave it up for good.
        counted: devices that report sums of the version.
        slow: of those, the ones where it takes too long.
        died: of those, the ones where its process ended.
        attempts: pictures that it was asked about, on all of them.
        errors: log e-value of its failures against the same devices' version before.
        old_right: judged pictures on which the version before was right and this one was not.
        new_right: the other way round.
    """

    reached: int
    active: int = 0
    on_probation: int = 0
    failed: int = 0
    counted: int = 0
    slow: int = 0
    died: int = 0
    attempts: int = 0
    errors: float = 0.0
    old_right: int = 0
    new_right: int = 0

    @property
    def started(self) -> int:
        """Devices that installed it, or gave it up."""
        return self.active + self.on_probation + self.failed


@dataclass(frozen=True, slots=True)
class WaveRules:
    """What a wave must show before the next one.

    Attributes:
        soak_s: seconds that it lasts at least.
        min_attempts: pictures that the version was asked about, on all devices reached, where devices report sums.
        min_judged: pictures with disagreement that were judged; 0: nobody judges any.
        accepted_failures: failed devices that somebody looked at, and went on.
    """

    soak_s: float = 600.0
    min_attempts: int = 0
    min_judged: int = 0
    accepted_failures: int = 0


@dataclass(frozen=True, slots=True)
class GateDecision:
    """What a rollout does now, and why."""

    action: Literal["halt", "hold", "widen"]
    reason: str


def decide(evidence: WaveEvidence, rules: WaveRules, open_s: float) -> GateDecision:
    """Decide what a rollout does now.

    Args:
        evidence: what is known of the devices reached.
        rules: what a wave must show.
        open_s: seconds since the wave began.
    """
    against = evidence_against(evidence)
    worst = max(against, key=against.__getitem__)
    if against[worst] >= HALT_AT:
        return GateDecision("halt", _halted_because(worst, evidence))
    missing = _missing(evidence, rules, open_s)
    return GateDecision("hold", missing) if missing else GateDecision("widen", "the wave has shown what it must")


def evidence_against(evidence: WaveEvidence) -> dict[str, float]:
    """The log e-value of each signal."""
    return {
        "failed": device_evidence(evidence.failed, evidence.started),
        "slow": device_evidence(evidence.slow, evidence.counted),
        "died": device_evidence(evidence.died, evidence.counted),
        "errors": evidence.errors,
        "shadow": pair_evidence(evidence.old_right, evidence.new_right),
    }


def device_evidence(failed: int, devices: int) -> float:
    """Log e-value of `failed` of `devices` failing: at a tenth of them (`BAD_SHARE`) against one by chance in a hundred."""
    good = math.log((1 - BAD_SHARE) / (1 - CHANCE_SHARE))
    return failed * math.log(BAD_SHARE / CHANCE_SHARE) + (devices - failed) * good


def failures_that_halt(devices: int) -> int:
    """The least number of failing devices that halts a rollout which has reached `devices`."""
    good = math.log((1 - BAD_SHARE) / (1 - CHANCE_SHARE))
    step = math.log(BAD_SHARE / CHANCE_SHARE) - good
    return max(1, math.ceil((HALT_AT - devices * good) / step - 1e-9))


def pair_evidence(old_right: int, new_right: int) -> float:
    """Log e-value of judged disagreements: a model that is as good as the one before is right on half of them."""
    return old_right * math.log(2 * OLD_RIGHT_SHARE) + new_right * math.log(2 * (1 - OLD_RIGHT_SHARE))


def error_evidence(old: VersionCounts, new: VersionCounts, drift: FleetDrift) -> float:
    """Log e-value of failures that became `ERROR_RATIO` times as frequent, each device compared with itself.

    Given all failures of a device, under either version, each is a coin: was it the new one's? Its chance depends on how many
    pictures each version saw, and not on how prone the device is to failures. What changed for everyone (night, weather) is
    taken out by the devices that the rollout has not reached; without those there is no evidence.
    """
    import numpy as np  # noqa: PLC0415  # the commands that decide nothing start without it

    if math.isinf(drift.upper):
        return 0.0
    before, after = np.asarray(old.attempts, float), np.asarray(new.attempts, float) * drift.upper
    known = (before > 0) & (after > 0)
    new_failures = np.asarray(new.failures, float)[known]
    failures = new_failures + np.asarray(old.failures, float)[known]
    shares = np.log((before[known] + after[known]) / (before[known] + ERROR_RATIO * after[known]))
    return float((new_failures * math.log(ERROR_RATIO) + (failures + _PRIOR) * shares).sum())


def is_slow(answers: int, too_slow: int) -> bool:
    """Whether a device's answers take too long: more than one in twenty, of at least a hundred."""
    return answers >= _MIN_TIMED and too_slow > _SLOW_SHARE * answers


def _missing(evidence: WaveEvidence, rules: WaveRules, open_s: float) -> str:
    """What the wave has yet to show; empty: nothing."""
    answers, judged = evidence.active + evidence.failed, evidence.old_right + evidence.new_right
    is_in_use = evidence.counted > 0 and evidence.active + evidence.on_probation > 0
    gaps = (
        (
            evidence.failed > max(answers / 2, rules.accepted_failures),
            f"{evidence.failed} of {answers} devices failed: too few to halt, too many to go on; look, then resume",
        ),
        (
            answers < math.ceil(_QUORUM * evidence.reached),
            f"{answers} of {evidence.reached} devices have answered, and half of them must",
        ),
        (answers < _SETTLED * evidence.started, f"{evidence.on_probation} devices are on probation"),
        (open_s < rules.soak_s, f"the wave lasts {math.ceil(rules.soak_s - open_s)} s more"),
        (
            is_in_use and evidence.attempts < rules.min_attempts,
            f"the version saw {evidence.attempts:,} pictures, and {rules.min_attempts:,} are needed",
        ),
        (judged < rules.min_judged, f"{judged} disagreements are judged, and {rules.min_judged} are needed: rollout judge"),
    )
    return next((text for is_missing, text in gaps if is_missing), "")


def _halted_because(signal: str, evidence: WaveEvidence) -> str:
    return {
        "failed": f"{evidence.failed} of {evidence.started} devices failed",
        "slow": f"it is too slow on {evidence.slow} of {evidence.counted} devices",
        "died": f"its process ended on {evidence.died} of {evidence.counted} devices",
        "errors": "its failures are more frequent than those of the version before on the same devices",
        "shadow": f"where both disagree, the version before was right on {evidence.old_right} pictures and this one on "
        f"{evidence.new_right}",
    }[signal]
