"""The outcomes of a request to a child process."""

import signal
from dataclasses import dataclass
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Answered:
    """The handler returned these bytes; the child lives."""

    body: bytes


@dataclass(frozen=True, slots=True)
class Refused:
    """The handler, or the factory at start, raised: class name and message of the exception. After a request the child lives."""

    kind: str
    reason: str

    def __str__(self) -> str:
        return self.reason


@dataclass(frozen=True, slots=True)
class Died:
    """The child ended in the middle of a request.

    Attributes:
        signal_number: the signal that ended it; 0: none.
        exit_code: its exit code; 0 with a signal.
        note: the last note of its handler in this request.
    """

    signal_number: int
    exit_code: int
    note: bytes = b""

    def __str__(self) -> str:
        if self.signal_number:
            return f"its process was ended by {_signal_name(self.signal_number)}"
        return f"its process exited with code {self.exit_code}"


@dataclass(frozen=True, slots=True)
class OutOfMemory:
    """The child reached its memory limit and is gone."""

    limit_bytes: int
    note: bytes = b""

    def __str__(self) -> str:
        return f"it needs more memory than its limit of {self.limit_bytes // (1024 * 1024)} MiB"


@dataclass(frozen=True, slots=True)
class TooLate:
    """The child did not answer within the time and was killed."""

    timeout_s: float
    note: bytes = b""

    def __str__(self) -> str:
        return f"it took longer than {self.timeout_s:g} s"


@dataclass(frozen=True, slots=True)
class Closed:
    """The caller closed the process in the meantime: nothing can be concluded about the request."""

    def __str__(self) -> str:
        return "its process was closed"


Gone: TypeAlias = Died | OutOfMemory | TooLate
Outcome: TypeAlias = Answered | Refused | Gone | Closed


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
