"""Maintenance or a retag of a lake in a bucket that is killed (SIGKILL, by itself) at its k-th durable step.

python dies_in_bucket.py <working copy> <k> <maintenance|retag>      k = 0: never; prints how many steps there were

Every put, copy and delete, and every commit of a table, is a step before it and a step after it.
"""

import os
import signal
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake
import obstore

from pipelines.lake.compact import compact_all
from pipelines.lake.lake import lake_at
from pipelines.lake.rollup import roll_up_all
from pipelines.maintenance.maintain import only_maintenance
from pipelines.maintenance.vacuum import Keep, Vacuum
from pipelines.policy.engine import Tagger
from pipelines.policy.retag import RuleTagger, retag_stream
from schemas.contract import builtin_contract
from schemas.policy import Policy, Rule

STREAM = "vehicle_telemetry"
RULES = Policy("drive", (STREAM,), (Rule("fast", "speed_mps > 5"),))


def maintenance(root: Path) -> None:
    """All of it, also where little is to be gained."""
    with only_maintenance(lake_at(root)):
        roll_up_all(lake_at(root))
        compact_all(lake_at(root), 2)
        Vacuum(lake_at(root), Keep(0, 0, 0, 0, 0)).sweep()


def retag(root: Path) -> None:
    """Every row of one stream."""
    retag_stream(lake_at(root), STREAM, [RULES], RuleTagger(Tagger.compile((RULES,), builtin_contract(STREAM))), workers=1)


class Steps:
    """Counts, and kills at the last. The beats of a claim are no steps: how many there are is a matter of time."""

    def __init__(self, last: int) -> None:
        self.taken, self._last = 0, last

    def watch(self, owner: Any, *names: str) -> None:
        for name in names:
            setattr(owner, name, self._counted(getattr(owner, name)))

    def _step(self) -> None:
        self.taken += threading.current_thread().name != "lake-claim"
        if self.taken == self._last:
            os.kill(os.getpid(), signal.SIGKILL)

    def _counted(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            self._step()
            result = function(*arguments, **named)
            self._step()
            return result

        return call


if __name__ == "__main__":
    steps = Steps(int(sys.argv[2]))
    steps.watch(deltalake.DeltaTable, "create_write_transaction")
    steps.watch(obstore, "put", "copy", "delete")
    {"maintenance": maintenance, "retag": retag}[sys.argv[3]](Path(sys.argv[1]))
    sys.stdout.write(f"{steps.taken}\n")
