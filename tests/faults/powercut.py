"""Power cuts, simulated: each state a disk may be left in (`disk_model`) is opened by the real spool, and what it holds is
compared with what callers were promised.

    python tests/faults/powercut.py --states 100000

Of other packages it needs those of the agent's spool alone: msgspec, nanoarrow, structlog.
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

import structlog

from tests.faults import workload
from tests.faults.disk_model import Disk, read_log
from tests.faults.promises import Promises, check
from tests.faults.shim import preload


def lay_out(folder: Path, root: str, state: dict[str, bytes | None]) -> None:
    base, folders = str(folder), {str(folder)}
    for name, content in state.items():
        path = base + name[len(root) :]
        parent, _, last = path.rpartition("/")
        if path == base or parent not in folders:
            continue  # the name of its folder was lost, and with it all that was in it
        if content is None:
            os.mkdir(path)  # noqa: PTH102 # half the time of a state went into path objects
            folders.add(path)
        elif last != workload.TELL_NAME:
            with open(path, "wb", buffering=0) as file:  # noqa: PTH123 # likewise
                file.write(content)


def record(folder: Path, seed: int, steps: int, sabotage: str) -> Path:
    """Live through a workload under the shim; the log of it."""
    root, log = folder / "root", folder / "log"
    root.mkdir()
    environment = {**os.environ, "LD_PRELOAD": str(preload()), "SHIM_ROOT": str(root), "SHIM_LOG": str(log)}
    environment["PYTHONPATH"] = os.pathsep.join(sys.path)
    command = [sys.executable, workload.__file__, str(root), str(seed), str(steps), sabotage]
    subprocess.run(command, env=environment, check=True, timeout=120)
    return log


def cut_power(seed: int, wanted: int, torn: int = 4, steps: int = 120, sabotage: str = "") -> Counter[str]:
    """Check about `wanted` different states of one workload; how many there were.

    Raises:
        AssertionError: a promise was broken; names seed, operation and state.
    """
    workload.make_small()
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.CRITICAL))
    done: Counter[str] = Counter()
    with tempfile.TemporaryDirectory(prefix="power-", dir=folder_in_memory()) as name:
        ops = list(read_log(record(Path(name), seed, steps, sabotage)))
        disk, promises, chance = Disk(), Promises(), random.Random(seed)
        seen: set[bytes] = set()
        # A long life gives more states than are wanted: those after some operations, spread over all of it.
        share = min(1.0, wanted / ((torn + 0.2) * sum(not op.path.endswith(workload.TELL_NAME) for op in ops)))
        for number, op in enumerate(ops):
            if op.path.endswith(workload.TELL_NAME):
                if op.letter == "W":
                    promises.hear(json.loads(op.data))
                continue
            disk.apply(op)
            done["operations"] += 1
            if chance.random() > share:
                continue
            for kind, state in enumerate(disk.states(chance, torn)):
                key = _digest(state)
                if key in seen:
                    done["seen before"] += 1
                    continue
                seen.add(key)
                _check_one(Path(name) / "state", f"{name}/root", state, promises, f"seed {seed}, operation {number}, kind {kind}")
                done["states"] += 1
            if done["states"] >= wanted:
                break
        done["promises"] = len(promises.captured)
    return done


def _digest(state: dict[str, bytes | None]) -> bytes:
    hasher = hashlib.blake2b(digest_size=16)
    for name in sorted(state):
        content = state[name]
        hasher.update(f"{name} {-1 if content is None else len(content)} ".encode())
        hasher.update(content or b"")
    return hasher.digest()


def _check_one(folder: Path, root: str, state: dict[str, bytes | None], promises: Promises, where: str) -> None:
    folder.mkdir()
    lay_out(folder, root, state)
    try:
        check(folder, promises)
    except Exception as error:
        raise AssertionError(f"{where}: {error!r}") from error
    finally:
        shutil.rmtree(folder)


def folder_in_memory() -> str | None:
    # The states are simulated: real syncs of them would only wear the disk.
    return "/dev/shm" if os.access("/dev/shm", os.W_OK) else None


def cut_power_many(states: int, processes: int, first_seed: int) -> Counter[str]:
    """Share the states among processes, each with workloads of its own."""
    each = 2_500
    seeds = range(first_seed, first_seed + -(-states // each))
    total: Counter[str] = Counter()
    with multiprocessing.get_context("fork").Pool(processes) as pool:
        for done in pool.imap_unordered(_cut_one, [(seed, min(each, states)) for seed in seeds]):
            total += done
            sys.stderr.write(f"{total['states']:,} of {states:,}\n")
    return total


def _cut_one(given: tuple[int, int]) -> Counter[str]:
    return cut_power(*given)


def in_a_process(seed: int, wanted: int, sabotage: str = "") -> Counter[str]:
    """`cut_power` in a process of its own: it makes the spool's limits small, which would disturb other tests.

    Raises:
        AssertionError: a promise was broken.
    """
    command = [sys.executable, __file__, "--one", "--seed", str(seed), "--states", str(wanted), "--sabotage", sabotage]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3_000:]
    return Counter(json.loads(done.stdout))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--states", type=int, default=100_000)
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--one", action="store_true", help="one workload, its figures as JSON")
    parser.add_argument("--sabotage", default="", help="leave syncs out: this must be caught")
    given = parser.parse_args()
    if given.one:
        print(json.dumps(cut_power(given.seed, given.states, sabotage=given.sabotage)))  # noqa: T201 # for the caller
        return
    began_s = time.monotonic()
    done = cut_power_many(given.states, given.processes, given.seed)
    took_s = time.monotonic() - began_s
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu_s = spent.ru_utime + spent.ru_stime
    print(  # noqa: T201 # run by hand
        f"power cuts: {done['states']:,} different disk states ({done['seen before']:,} more were like others) after"
        f" {done['operations']:,} operations, {done['promises']:,} acknowledged envelopes, 0 lost, 0 damaged;"
        f" {took_s:.0f} s, {cpu_s:.0f} s of CPU, {done['states'] / cpu_s:.0f} states per second of it",
        flush=True,
    )


if __name__ == "__main__":
    main()
