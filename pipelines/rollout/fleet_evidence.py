"""What a fleet's reports say for or against a rollout: the evidence that the gates decide by."""

from collections.abc import Iterable, Mapping

from pipelines.rollout.gates import FleetDrift, GateDecision, VersionCounts, WaveEvidence, decide, error_evidence, is_slow
from pipelines.rollout.judged import JudgedPairs
from pipelines.rollout.rollouts import Rollout, progress
from schemas.model_tally import ModelTally
from schemas.reported import ModelReport


class FleetWatch:
    """Follows a fleet while rollouts run: what devices that a rollout has not reached counted when it was first seen.

    A server that starts again begins a new comparison; until devices have reported enough after it, errors are no evidence.
    """

    def __init__(self) -> None:
        self._baselines: dict[str, dict[str, ModelTally]] = {}

    def decide(
        self, rollout: Rollout, reports: Mapping[str, Iterable[ModelReport]], judged: JudgedPairs, now_ms: int
    ) -> tuple[GateDecision, WaveEvidence]:
        """What the rollout does now, and what that is decided by."""
        evidence = self._evidence(rollout, reports, judged)
        return decide(evidence, rollout.rules, (now_ms - rollout.opened_ms) / 1_000), evidence

    def forget(self, names: Iterable[str]) -> None:
        """Keep the comparisons of these rollouts alone."""
        kept = set(names)
        self._baselines = {name: found for name, found in self._baselines.items() if name in kept}

    def _evidence(self, rollout: Rollout, reports: Mapping[str, Iterable[ModelReport]], judged: JudgedPairs) -> WaveEvidence:
        ours = {
            device: found
            for device, models in reports.items()
            if (found := next((report for report in models if report.name == rollout.model), None)) is not None
        }
        reached = rollout.among(reports)
        done = progress(rollout, reports)
        new = {device: tally for device in reached if device in ours and (tally := _tally(ours[device], rollout.version))}
        old = {device: tally for device in new if (tally := _tally_before(ours[device], rollout.version))}
        beside = {device: tally for device, report in ours.items() if (tally := _tally_before(report, rollout.version))}
        drift = self._drift(rollout.name, {device: beside[device] for device in beside.keys() - set(reached)})
        slow = sum(is_slow(tally.inferences, tally.slower_than(rollout.max_latency_ms)) for tally in new.values())
        return WaveEvidence(
            reached=len(reached),
            active=len(done.active),
            on_probation=len(done.on_probation),
            failed=len(done.failed),
            counted=len(new),
            slow=slow if rollout.max_latency_ms else 0,
            died=sum(tally.deaths > 0 for tally in new.values()),
            attempts=sum(tally.attempts for tally in new.values()),
            errors=error_evidence(_counts(old.values()), _counts(new[device] for device in old), drift),
            old_right=judged.old_right,
            new_right=judged.new_right,
        )

    def _drift(self, name: str, beside: Mapping[str, ModelTally]) -> FleetDrift:
        """How much more frequent failures became on devices that the rollout has not reached."""
        first = self._baselines.setdefault(name, dict(beside))
        pairs = [
            (first[device], now)
            for device, now in beside.items()
            if device in first and first[device].version == now.version and now.attempts >= first[device].attempts
        ]
        before = _sums(was for was, _ in pairs)
        since = tuple(now - was for now, was in zip(_sums(now for _, now in pairs), before, strict=True))
        if not all((*before, *since)):
            return FleetDrift()
        return FleetDrift(before[1], since[1], since[1] / since[0] / (before[1] / before[0]))


def _tally(report: ModelReport, version: int) -> ModelTally | None:
    return next((tally for tally in report.tallies or () if tally.version == version and tally.attempts), None)


def _tally_before(report: ModelReport, version: int) -> ModelTally | None:
    return next((tally for tally in report.tallies or () if tally.version != version and tally.attempts), None)


def _counts(tallies: Iterable[ModelTally]) -> VersionCounts:
    found = list(tallies)
    return VersionCounts([tally.attempts for tally in found], [tally.failures for tally in found])


def _sums(tallies: Iterable[ModelTally]) -> tuple[int, int]:
    found = list(tallies)
    return sum(tally.attempts for tally in found), sum(tally.failures for tally in found)
