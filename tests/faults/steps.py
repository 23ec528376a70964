"""The durable steps of a process on a lake, each with a name: fsync, rename, link, unlink, and what tables and receipts add."""

import os
import re
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import deltalake

WATCHED = ("fsync", "replace", "rename", "link", "unlink")
_OWN = re.compile(r"\.\d+(-\d+)?(?=\.(tmp|new))")  # the numbers of process and thread in the name of a file that is being written


class Steps:
    """Tells of every step before and after it, and stays permanently at the one that is to be the last.

    Args:
        root: the lake; what happens outside of it is no step, and names are relative to it.
        last: the step at which to stay, from 1; 0: none.
        tell: hears each name, before anything else happens.
    """

    def __init__(self, root: Path, last: int, tell: Callable[[str], object]) -> None:
        self._root, self._last, self._tell = root, last, tell
        self._taken = 0

    def watch(self) -> None:
        """From now on, in this process, for good."""
        for name in WATCHED:
            setattr(os, name, self._watched(getattr(os, name), name))
        tables: Any = deltalake.DeltaTable
        tables.create = staticmethod(self._watched(tables.create, "create"))
        tables.create_write_transaction = self._watched(tables.create_write_transaction, "commit")

    def step(self, name: str) -> None:
        """One more."""
        self._taken += 1
        self._tell(name)
        while self._taken == self._last:
            signal.pause()

    def _watched(self, function: Callable[..., Any], kind: str) -> Callable[..., Any]:
        def call(*arguments: Any, **named: Any) -> Any:
            path = _path(arguments[1] if kind in ("replace", "rename", "link") else arguments[0])
            if not path.is_relative_to(self._root):
                return function(*arguments, **named)
            place = _OWN.sub("", str(path.relative_to(self._root)))
            self.step(f"before {kind} {place}")
            result = function(*arguments, **named)
            self.step(f"after {kind} {place}")
            return result

        return call


def _path(given: Any) -> Path:
    if isinstance(given, deltalake.DeltaTable):
        return Path(given.table_uri.removeprefix("file://"))
    if isinstance(given, int):
        return Path(f"/proc/self/fd/{given}").readlink()
    return Path(given)
