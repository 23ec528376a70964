"""A process that ends as by SIGKILL at its k-th durable step, k its second argument: 0 is never.

Each fsync, rename and the like, and each Delta commit, is a step before it and a step after it.
"""

import os
import sys
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

import deltalake

taken = 0


def step() -> None:
    """One more. The beats of a claim are none: how many there are is a matter of time."""
    global taken  # noqa: PLW0603  # one counter for the whole process is the point
    if threading.current_thread().name == "lake-claim":
        return
    taken += 1
    if taken == int(sys.argv[2]):
        os._exit(137)


def count(*names: str) -> None:
    """Count these functions of `os`, and the commits of Delta tables."""
    count_of(os, *names)
    commit = deltalake.DeltaTable.create_write_transaction
    deltalake.DeltaTable.create_write_transaction = _counted(commit)  # type: ignore[method-assign]


def count_of(module: ModuleType, *names: str) -> None:
    """Count these functions of a module."""
    for name in names:
        setattr(module, name, _counted(getattr(module, name)))


def _counted(function: Callable[..., Any]) -> Callable[..., Any]:
    def call(*arguments: Any, **named: Any) -> Any:
        step()
        result = function(*arguments, **named)
        step()
        return result

    return call


def end() -> None:
    """Say how many steps there were, and end without any more."""
    sys.stdout.write(f"{taken}\n")
    sys.stdout.flush()
    os._exit(0)
