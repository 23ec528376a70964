"""Power cuts, simulated: from a log of every write, sync and name, all that a disk may hold when the power goes.

What was synced is there. Of what was not, nothing is, all is, or any 512-byte sectors of it are; of new names, a prefix
per folder. Each such state is opened by the real spool, and what it holds is compared with what callers were promised.

    python tests/faults/powercut.py --states 100000
"""

import argparse
import hashlib
import json
import logging
import multiprocessing
import os
import random
import shutil
import struct
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path

import structlog

from edge_agent.spool.records import BodyPlace, State
from edge_agent.spool.spool import Spool
from schemas.ids import StreamName
from schemas.ranges import Ranges
from schemas.receipts import Receipt
from tests.faults import workload
from tests.faults.shim import preload

SECTOR_BYTES = 512
_HEAD = struct.Struct("<c3xIIIq")


@dataclass(slots=True)
class Op:
    """One change: its letter (see shim.c), what it was made to, and with what."""

    letter: str
    path: str
    other: str
    data: bytes
    offset: int


def read_log(path: Path) -> Iterator[Op]:
    content = memoryview(path.read_bytes())
    at = 0
    while at < len(content):
        letter, path_bytes, other_bytes, data_bytes, offset = _HEAD.unpack_from(content, at)
        ends = [at + _HEAD.size + path_bytes]
        ends += [ends[0] + other_bytes, ends[0] + other_bytes + data_bytes]
        name, other = str(content[at + _HEAD.size : ends[0]], "utf-8"), str(content[ends[0] : ends[1]], "utf-8")
        yield Op(letter.decode(), name, other, bytes(content[ends[1] : ends[2]]), offset)
        at = ends[2]


@dataclass(slots=True)
class Inode:
    """A file's bytes that are on the disk for good, and the changes that are not."""

    durable: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # bytes at an offset; None: cut to that size

    def sync(self) -> None:
        self.durable = self.after([(at, data, None) for at, data in self.pending])
        self.pending.clear()

    def after(self, changes: list[tuple[int, bytes | None, random.Random | None]]) -> bytes:
        """The bytes after these changes; with a chance given, only some sectors of each."""
        content = bytearray(self.durable)
        for at, data, chance in changes:
            if data is None:
                del content[at:]
                content.extend(bytes(at - len(content)))
            elif chance is None:
                _lay(content, at, data)
            else:
                start = 0
                while start < len(data):
                    end = min(len(data), start + SECTOR_BYTES - (at + start) % SECTOR_BYTES)
                    if chance.random() < 0.5:
                        _lay(content, at + start, data[start:end])
                    start = end
        return bytes(content)


def _lay(content: bytearray, at: int, data: bytes) -> None:
    if len(content) < at:
        content.extend(bytes(at - len(content)))
    content[at : at + len(data)] = data


class Disk:
    """The names and bytes of a file system, durable and not."""

    def __init__(self) -> None:
        self._now: dict[str, Inode | None] = {}  # None is a folder
        self._durable: dict[str, Inode | None] = {}
        self._pending: list[tuple[str, str, str, Inode | None]] = []  # letter, name, other name, inode

    def apply(self, op: Op) -> None:
        if op.letter in "CM":
            inode = Inode() if op.letter == "C" else None
            self._now[op.path] = inode
            self._pending.append((op.letter, op.path, "", inode))
        elif op.letter in "URL":
            self._rename(op)
        elif op.letter == "S" and self._now.get(op.path) is None:
            self._sync_folder(op.path)
        elif (inode := self._now.get(op.path)) is not None:
            if op.letter == "S":
                inode.sync()
            else:
                inode.pending.append((op.offset, op.data if op.letter == "W" else None))

    def _rename(self, op: Op) -> None:
        inode = self._now[op.path] if op.letter == "L" else self._now.pop(op.path, None)
        if op.letter in "RL":
            self._now[op.other] = inode
        self._pending.append((op.letter, op.path, op.other, inode))

    def _sync_folder(self, folder: str) -> None:
        left = []
        for change in self._pending:
            if change[1].rpartition("/")[0] == folder:
                _name(self._durable, change)
            else:
                left.append(change)
        self._pending = left

    def states(self, chance: random.Random, torn: int) -> Iterator[dict[str, bytes | None]]:
        """What may be there now: only what was synced, everything, and `torn` random mixtures of both."""
        yield {name: inode and inode.durable for name, inode in self._durable.items()}
        yield {name: inode and inode.after([(at, data, None) for at, data in inode.pending]) for name, inode in self._now.items()}
        for _ in range(torn):
            names = self._some_names(chance)
            yield {name: inode and self._some_bytes(inode, chance) for name, inode in names.items()}

    def _some_names(self, chance: random.Random) -> dict[str, Inode | None]:
        names = dict(self._durable)
        kept: dict[str, bool] = {}
        for change in self._pending:
            folder = change[1].rpartition("/")[0]
            # A journal keeps the order of names in a folder: once one is missing, all after it are.
            kept[folder] = kept.get(folder, True) and chance.random() < 0.8
            if kept[folder]:
                _name(names, change)
        return names

    def _some_bytes(self, inode: Inode, chance: random.Random) -> bytes:
        changes: list[tuple[int, bytes | None, random.Random | None]] = []
        for at, data in inode.pending:
            if (luck := chance.random()) < 0.35:
                changes.append((at, data, None))
            elif luck < 0.7 and data is not None:
                changes.append((at, data, chance))
        return inode.after(changes)


def _name(names: dict[str, Inode | None], change: tuple[str, str, str, Inode | None]) -> None:
    letter, path, other, inode = change
    if letter in "CM":
        names[path] = inode
    elif letter == "L":
        names[other] = inode
    else:
        names.pop(path, None)
        if letter == "R":
            names[other] = inode


class Settled:
    """A receipt, asked many times."""

    def __init__(self, told: dict[str, dict[str, list[tuple[int, int]]]]) -> None:
        self._receipt = Receipt(1, told)
        self._ranges: dict[tuple[str, int], Ranges] = {}

    def covers(self, stream: str, epoch: int, low: int, high: int) -> bool:
        if (stream, epoch) not in self._ranges:
            self._ranges[stream, epoch] = self._receipt.ranges(StreamName(stream), epoch)
        return self._ranges[stream, epoch].covers(low, high)


@dataclass(slots=True)
class Promises:
    """What callers were told, up to some moment."""

    captured: dict[tuple[str, int, int], tuple[int, str]] = field(default_factory=dict)
    begun: dict[str, tuple[str, int]] = field(default_factory=dict)  # digest of a body -> stream, count
    positions: dict[str, tuple[int, int]] = field(default_factory=dict)  # stream -> durable for sure, begun
    settling: "Settled" = field(default_factory=lambda: Settled({}))
    settled: "Settled" = field(default_factory=lambda: Settled({}))  # durable for sure
    epochs: set[int] = field(default_factory=set)

    def hear(self, what: dict[str, object]) -> None:
        if "captured" in what:
            stream, epoch, seq, count, digest = what["captured"]  # type: ignore[misc]
            self.captured[stream, epoch, seq] = (count, digest)
            self.positions[stream] = (what["position"], what["position"])  # type: ignore[assignment]
        elif "begun" in what:
            stream, envelopes, position = what["begun"]  # type: ignore[misc]
            self.begun.update((digest, (stream, count)) for count, digest in envelopes)
            self.positions[stream] = (self.positions.get(stream, (0, 0))[0], position)
        elif "settled" in what:
            self.settled = Settled(what["settled"])  # type: ignore[arg-type]
        elif "settling" in what:
            self.settling = Settled(what["settling"])  # type: ignore[arg-type]
        elif "epoch" in what:
            self.epochs.add(what["epoch"])  # type: ignore[arg-type]


def check(folder: Path, promises: Promises) -> None:
    """Open the spool in a folder as the agent would, and hold it to its promises."""
    spool = workload.open_small(folder / "state" / "spool")
    try:
        hold(spool, promises)
    finally:
        spool.close()


def hold(spool: Spool, promises: Promises) -> None:
    assert spool.opened.moved_aside is None, "a power cut alone damages nothing"
    assert spool.epoch > max(promises.epochs, default=0), "an epoch was used twice"
    books = {entry.stream: entry for entry in spool.books()}
    assert all(entry.is_balanced for entry in books.values()), books
    assert not any("corrupt" in entry.dropped for entry in books.values()), books
    stored = _stored(spool)
    _nothing_invented(stored, promises)
    for stream, (low, high) in promises.positions.items():
        position = int(spool.position(stream) or 0)
        assert low <= position <= high, f"{stream} resumes at {position}, not within {low} and {high}"
        assert position == (books[stream].captured if stream in books else 0), "position and books disagree"
    dropped = {(entry.stream, entry.epoch): entry for entry in spool.epochs()}
    spooled: Counter[str] = Counter()
    for (stream, _, _), (count, _) in stored.items():
        spooled[stream] += count
    assert all(entry.spooled == spooled[stream] for stream, entry in books.items()), (books, spooled)
    for (stream, epoch, seq), (count, digest) in promises.captured.items():
        found = stored.get((stream, epoch, seq))
        if found is not None:
            assert found == (count, digest), "an acknowledged body differs"
        elif not promises.settling.covers(stream, epoch, seq, seq + count):
            ranges = dropped[stream, epoch].dropped if (stream, epoch) in dropped else ()
            gone = any(entry.low <= seq and seq + count <= entry.high for entry in ranges)
            assert gone, f"lost: {stream} {epoch} {seq}+{count}"


def _nothing_invented(stored: dict[tuple[str, int, int], tuple[int, str]], promises: Promises) -> None:
    times = Counter(digest for _, digest in stored.values())
    for (stream, epoch, seq), (count, digest) in stored.items():
        assert promises.begun.get(digest) == (stream, count), f"invented: {stream} {epoch} {seq}+{count}"
        assert times[digest] == 1, f"double: {stream} {epoch} {seq}+{count}"
        assert not promises.settled.covers(stream, epoch, seq, seq + count), "settled, yet there"


def _stored(spool: Spool) -> dict[tuple[str, int, int], tuple[int, str]]:
    found: dict[tuple[str, int, int], tuple[int, str]] = {}
    rows = spool._reader.execute(
        "SELECT stream, epoch, first_seq, count, digest, state, body, file, at, body_bytes FROM envelope"
    ).fetchall()
    for stream, epoch, seq, count, digest, state, body, file, *place in rows:
        content = body
        if file:
            content = spool._bodies.read(BodyPlace(file, *place))
        assert (stream, epoch, seq) not in found, "a seq was stored twice"
        found[stream, epoch, seq] = (count, hashlib.sha256(content).hexdigest())
        if digest and state == State.WAITING:
            assert hashlib.sha256(spool.read_object(digest, 0, 1 << 20)).hexdigest() == digest, "a payload file differs"
    ends = sorted((stream, epoch, seq, seq + count) for (stream, epoch, seq), (count, _) in found.items())
    for (stream, epoch, _, end), (stream_after, epoch_after, first, _) in pairwise(ends):
        assert (stream, epoch) != (stream_after, epoch_after) or end <= first, "seqs overlap"
    return found


def lay_out(folder: Path, root: str, state: dict[str, bytes | None]) -> None:
    for name, content in state.items():
        path = folder / name.removeprefix(root).lstrip("/")
        if not path.parent.is_dir():
            continue  # the name of its folder was lost, and with it all that was in it
        if content is None:
            path.mkdir(exist_ok=True)
        elif path.name != workload.TELL_NAME:
            path.write_bytes(content)


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
    with tempfile.TemporaryDirectory(prefix="power-", dir=_memory()) as name:
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


def _memory() -> str | None:
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
    began = time.monotonic()
    done = cut_power_many(given.states, given.processes, given.seed)
    took_s = time.monotonic() - began
    print(  # noqa: T201 # run by hand
        f"power cuts: {done['states']:,} different disk states after {done['operations']:,} operations, "
        f"{done['promises']:,} acknowledged envelopes, 0 lost, 0 damaged, {took_s:.0f} s"
    )


if __name__ == "__main__":
    main()
