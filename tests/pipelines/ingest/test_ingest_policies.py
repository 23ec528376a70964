"""Policies applied while the loop runs: the next run pins and tags by them, a repeated run by its own."""

from collections.abc import Callable
from typing import Any

from pipelines.ingest.plan import read_pins, read_plan
from pipelines.lake.lake import lake_at
from pipelines.policy.documents import apply_policy, withdraw_policy
from schemas.policy import Policy, Rule
from tests.plant.core import Core
from tests.plant.present import present

STREAM = "streams/vehicle_telemetry"


def policy(when: str) -> Policy:
    return Policy("drive", ("vehicle_telemetry",), (Rule("fast", when),))


def test_the_run_after_an_apply_tags_by_it_without_a_restart(core: Core, envelope: Callable[..., Any]) -> None:
    first, second = policy("speed_mps >= 0"), policy("speed_mps > 1000")
    loop = core.loop()
    for start, change in ((0, None), (10, first), (20, second), (30, "withdraw")):
        if isinstance(change, Policy):
            apply_policy(lake_at(core.root), change, "ada", start)
        elif change:
            withdraw_policy(lake_at(core.root), "drive", "ada", start)
        core.landing.seal([envelope(start, 10)])
        assert loop.step()
    rows = sorted(core.rows(STREAM), key=lambda row: row["seq"])
    assert [row["tag_rules"] for row in rows] == [[]] * 10 + [[first.label]] * 10 + [[]] * 20
    pinned = [
        [each.label for each in read_pins(lake_at(core.root), present(read_plan(lake_at(core.root), run)).pins).policies]
        for run in (1, 2, 3, 4)
    ]
    assert pinned == [[], [first.label], [second.label], []]
