"""Upkeep or a retag of a lake in a bucket that ends as by SIGKILL at its k-th durable step.

python dies_in_bucket.py <working copy> <k> <upkeep|retag>      k = 0: never; prints how many steps there were

Every put, copy and delete, and every commit of a table, is a step before it and a step after it.
"""

import sys
from pathlib import Path

import obstore

from pipelines.lake.compact import compact_all
from pipelines.lake.rollup import roll_up_all
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import retag_stream
from pipelines.policy.tag_file import RuleTagger
from pipelines.upkeep.maintain import only_maintenance
from pipelines.upkeep.vacuum import Keep, Vacuum
from schemas.builtin import builtin_contract
from schemas.policy import Policy, Rule
from tests.fakes import durable_steps

STREAM = "vehicle_telemetry"
RULES = Policy("drive", (STREAM,), (Rule("fast", "speed_mps > 5"),))


def upkeep(root: Path) -> None:
    """All of it, also where little is to be gained."""
    with only_maintenance(root):
        roll_up_all(root)
        compact_all(root, 2)
        Vacuum(root, Keep(0, 0, 0, 0, 0)).sweep()


def retag(root: Path) -> None:
    """Every row of one stream."""
    retag_stream(root, STREAM, [RULES], RuleTagger(Tagger.compile((RULES,), builtin_contract(STREAM))), workers=1)


if __name__ == "__main__":
    durable_steps.count()
    durable_steps.count_of(obstore, "put", "copy", "delete")
    {"upkeep": upkeep, "retag": retag}[sys.argv[3]](Path(sys.argv[1]))
    durable_steps.end()
