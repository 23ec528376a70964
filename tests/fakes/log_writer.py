"""A program that writes a log while logrotate's copytruncate works on it: with and without O_APPEND, buffered or by the line."""

import gzip
import lzma
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import zstandard

HEADER = (
    "#separator \\x09\n#set_separator\t,\n#empty_field\t(empty)\n#unset_field\t-\n#path\tconn\n#open\t2024-05-01-00-00-00\n"
    "#fields\tts\tuid\tid.orig_h\tproto\n#types\ttime\tstring\taddr\tenum\n"
)
_HEADS = {"tsv": HEADER.encode(), "csv": b"ts,uid,proto\n"}
PACKERS: dict[str, Callable[[bytes], bytes]] = {
    "gz": gzip.compress,
    "zst": zstandard.ZstdCompressor().compress,
    "xz": lambda body: lzma.compress(body, preset=0),
}


class CutWriter:
    """Writes rows; a row counts as written once all of it is in the file.

    Args:
        log: where.
        form: tsv, json, csv or plain.
        appends: whether it opens the log with O_APPEND; else it goes on at its own place after a cut, behind NUL bytes.
        buffer: bytes that are written together, as stdio does: a line may be torn over two writes, and so over a cut.
    """

    def __init__(self, log: Path, form: str = "tsv", *, appends: bool = True, buffer: int = 0) -> None:
        self.log = log
        self.form = form
        self._buffer = buffer
        self._pending = b""
        self._fd = os.open(log, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if appends else 0))
        self.n = 0
        self.rotations = 0
        self.written: list[str] = []
        self._appends = appends
        self._put(_HEADS.get(form, b""))

    def rows(self, count: int, pad: int = 0) -> None:
        for _ in range(count):
            uid = f"C{self.n}" + "x" * pad
            row = {
                "tsv": f"{self.n}.5\t{uid}\t10.0.0.1\ttcp\n",
                "json": f'{{"ts":{self.n},"uid":"{uid}","proto":"tcp"}}\n',
                "csv": f'{self.n},{uid},"t\ncp"\n',
                "plain": f"{uid}\n",
            }[self.form]
            self._put(row.encode())
            self.written.append(uid)
            self.n += 1

    def begin_anew(self) -> None:
        """Rotate by name: the file is ended, renamed, and a new one begun with a header of its own."""
        self.close()
        self.shift()
        target = self.log.with_name(f"{self.log.name}.1")
        self.log.rename(target)
        self._stamp(target)
        self._fd = os.open(self.log, os.O_WRONLY | os.O_CREAT | (os.O_APPEND if self._appends else 0))
        self._put(_HEADS.get(self.form, b""))

    def flush(self) -> None:
        os.write(self._fd, self._pending)
        self._pending = b""

    def close(self) -> None:
        self.flush()
        os.close(self._fd)

    def _put(self, piece: bytes) -> None:
        self._pending += piece
        if not self._buffer:
            self.flush()
        while self._buffer and len(self._pending) >= self._buffer:
            os.write(self._fd, self._pending[: self._buffer])
            self._pending = self._pending[self._buffer :]

    def shift(self) -> None:
        """Rename the rotated files: .1 to .2 and so on, packed ones too."""
        for number in range(self.rotations, 0, -1):
            for suffix in ("", *(f".{name}" for name in PACKERS)):
                old = self.log.with_name(f"{self.log.name}.{number}{suffix}")
                if old.exists():
                    old.rename(self.log.with_name(f"{self.log.name}.{number + 1}{suffix}"))
        self.rotations += 1

    def copy(self, until: int | None = None) -> None:
        """Copy the log, or its first bytes, as what is rotated."""
        self.shift()
        target = self.log.with_name(f"{self.log.name}.1")
        shutil.copyfile(self.log, target)
        if until is not None:
            os.truncate(target, until)
        self._stamp(target)

    def _stamp(self, path: Path) -> None:
        os.utime(path, (1_700_000_000 + self.rotations * 10,) * 2)

    def cut(self) -> None:
        os.truncate(self.log, 0)

    def rotate(self) -> None:
        self.copy()
        self.cut()

    def pack(self, kind: str = "gz", number: int = 1) -> None:
        plain = self.log.with_name(f"{self.log.name}.{number}")
        if not plain.exists():
            return
        stat = plain.stat()
        packed = plain.with_name(f"{plain.name}.{kind}")
        packed.write_bytes(PACKERS[kind](plain.read_bytes()))
        os.utime(packed, ns=(stat.st_mtime_ns, stat.st_mtime_ns))
        plain.unlink()

    def drop(self, number: int) -> None:
        """Remove the oldest, as `rotate N` does."""
        for path in self.log.parent.glob(f"{self.log.name}.{number}*"):
            path.unlink()
