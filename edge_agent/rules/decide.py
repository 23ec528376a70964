"""What becomes of each sample, given what the rules say of it. Pure."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from schemas.edge_policy import EdgeAction, EdgeRule

Verdicts = Sequence[bool | None]
REASON_PREFIX = "rule:"


@dataclass(slots=True)
class Fates:
    """The rows kept, by priority in the order of the batch, and how many each rule left out."""

    kept: dict[int, list[int]] = field(default_factory=dict)
    left_out: dict[str, int] = field(default_factory=dict)


def decide(
    rules: Sequence[EdgeRule],
    verdicts: Sequence[Verdicts],
    rows: int,
    priority: int,
    filled: float,
    chance: Callable[[int], float],
) -> Fates:
    """Decide about every row.

    Args:
        rules: in order; of keep, drop and sample the first that is true decides, likewise of priority.
        verdicts: for each rule one per row; None (unknown) is not true.
        rows: how many there are.
        priority: of rows no rule speaks of.
        filled: how full the spool is, 0 to 1.
        chance: a fixed number from 0 to below 1 for a row.
    """
    active = [(rule, matches) for rule, matches in zip(rules, verdicts, strict=True) if rule.pressure <= filled]
    choosing = [(rule, matches) for rule, matches in active if rule.action is not EdgeAction.PRIORITY]
    ranking = [(rule, matches) for rule, matches in active if rule.action is EdgeAction.PRIORITY]
    fates = Fates()
    for row in range(rows):
        out = _left_out_by(choosing, row, chance)
        if out is not None:
            reason = REASON_PREFIX + out.id
            fates.left_out[reason] = fates.left_out.get(reason, 0) + 1
            continue
        worth = next((rule.priority for rule, matches in ranking if matches[row]), priority)
        fates.kept.setdefault(worth, []).append(row)
    return fates


def _left_out_by(rules: Sequence[tuple[EdgeRule, Verdicts]], row: int, chance: Callable[[int], float]) -> EdgeRule | None:
    for rule, matches in rules:
        if not matches[row]:
            continue
        if rule.action is EdgeAction.KEEP:
            return None
        is_kept = rule.action is EdgeAction.SAMPLE and chance(row) < rule.rate
        return None if is_kept else rule
    return None
