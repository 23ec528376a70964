"""Commands of the core, run in this process as the program runs them: to an exit code, with what they print."""

import sys
from collections.abc import Callable
from dataclasses import dataclass

import pytest

import pipelines.cli


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    code: int
    out: str
    err: str


RunCore = Callable[..., Ended]


def runner(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunCore:
    """What runs a command by its words."""

    def run(*words: str) -> Ended:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["catchment", *words])
        code = pipelines.cli.run_command()
        return Ended(code, *capsys.readouterr())

    return run
