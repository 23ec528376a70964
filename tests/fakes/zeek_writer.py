"""Zeek, as far as its logs are concerned, and a source that follows them with a clock moved by hand."""

import gzip
import os
import shutil
import time
from pathlib import Path

from edge_agent.sources.registry import GuardedSource, build_source
from schemas.contract import builtin_contract

FLOWS = builtin_contract("network_flow")
HEADER = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n#open\t{n}\n"
    "#fields\tts\tuid\tid.orig_h\tproto\n#types\ttime\tstring\taddr\tenum\n"
)


class HandClock:
    def __init__(self) -> None:
        self.s = 0.0

    def now_ms(self) -> int:
        return int(time.time() * 1000)

    def monotonic_s(self) -> float:
        return self.s

    def sleep(self, seconds: float) -> None:
        self.s += seconds


_BUILT: list[GuardedSource] = []


def close_all() -> None:
    """Close what was built since the last call."""
    while _BUILT:
        _BUILT.pop().close()


def follow(log: Path, position: bytes | None = None, clock: HandClock | None = None, **options: object) -> GuardedSource:
    _BUILT.append(build_source("zeek", {"path": str(log), "settle_ms": 0, **options}, FLOWS, clock or HandClock(), position))
    return _BUILT[-1]


def uids(source: GuardedSource, tries: int = 8, max_samples: int = 1000) -> tuple[list[str], bytes | None]:
    found: list[str] = []
    position = None
    quiet = 0
    while quiet < tries:
        batch = source.read(max_samples)
        quiet = quiet + 1 if batch is None else 0
        if batch is not None:
            found += map(str, batch.columns["uid"])
            position = batch.position
    return found, position


class Writer:
    """Writes a log as Zeek does: a header, rows, rotation by rename and a new file, packing."""

    def __init__(self, folder: Path, *, is_json: bool = False) -> None:
        self.log = folder / "conn.log"
        self.is_json = is_json
        self.n = 0
        self.rotations = 0
        self.old: list[Path] = []
        self.written: list[str] = []

    def rows(self, count: int) -> None:
        fresh = not self.log.exists()
        with self.log.open("a") as file:
            if fresh and not self.is_json:
                file.write(HEADER.format(n=self.rotations))
            for _ in range(count):
                uid = f"C{self.n}"
                line = f'{{"ts":{self.n},"uid":"{uid}","proto":"tcp"}}' if self.is_json else f"{self.n}.5\t{uid}\t10.0.0.1\ttcp"
                file.write(line + "\n")
                self.written.append(uid)
                self.n += 1

    def rotate(self) -> None:
        if self.log.exists():
            self.rotations += 1
            target = self.log.with_name(f"conn.2024-05-01-{self.rotations:02d}-00-00.log")
            self.log.rename(target)
            os.utime(target, (1_700_000_000 + self.rotations * 10,) * 2)
            self.old.append(target)

    def pack(self) -> None:
        while self.old:
            path = self.old.pop(0)
            packed = path.with_name(path.name + ".gz")
            stat = path.stat()
            with path.open("rb") as plain, gzip.open(packed, "wb") as out:
                shutil.copyfileobj(plain, out)
            os.utime(packed, (stat.st_mtime + 3, stat.st_mtime + 3))
            path.unlink()
