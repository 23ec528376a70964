"""A disk, from a log of every write, sync and name: all that it may hold when the power goes.

What was synced is there. Of what was not, nothing is, all is, or any 512-byte sectors of it are; of new names, a prefix
per folder.
"""

import random
import struct
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

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
        self.durable = _in_full(self)
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


def _in_full(inode: Inode) -> bytes:
    return inode.after([(at, data, None) for at, data in inode.pending])


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
        yield {name: None if inode is None else inode.durable for name, inode in self._durable.items()}
        yield {name: None if inode is None else _in_full(inode) for name, inode in self._now.items()}
        for _ in range(torn):
            names = self._some_names(chance)
            yield {name: None if inode is None else self._some_bytes(inode, chance) for name, inode in names.items()}

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
