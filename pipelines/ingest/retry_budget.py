"""How often a failing run is tried before the loop says so and ends. No IO."""

from dataclasses import dataclass

from catchment.runtime.backoff import doubled_s
from pipelines.errors import FaultError, PipelineError

MAX_FAULTS = 3
MAX_TRIES = 20
FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0


@dataclass(slots=True)
class RetryBudget:
    """Consecutive failures. An internal error is retried few times, an unavailable resource more often."""

    count: int = 0
    faults: int = 0
    total: int = 0
    trouble: str = ""

    def failed(self, error: PipelineError) -> float:
        """Take a failure in; the seconds to wait before the next try.

        Raises:
            PipelineError: `error` itself, once it was met too often in a row: the supervisor sees the process fall, and says so.
        """
        self.count += 1
        self.total += 1
        self.trouble = str(error)
        self.faults += isinstance(error, FaultError)
        if self.faults >= MAX_FAULTS or self.count >= MAX_TRIES:
            raise error
        return doubled_s(FIRST_PAUSE_S, LONGEST_PAUSE_S, self.count - 1)

    def succeeded(self) -> None:
        """A step came to its end."""
        self.count = self.faults = 0
        self.trouble = ""
