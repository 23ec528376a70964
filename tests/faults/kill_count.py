"""Counts the SIGKILLs of a whole test session, over all its workers, and fails it if there were too few.

`CATCHMENT_LEAST_KILLS=300`, as `make test-slow` has it, is how many there must be.
"""

import os
import time
from collections.abc import Callable

import pytest

KILLS = "kills"
LEAST_KILLS = int(os.environ.get("CATCHMENT_LEAST_KILLS", "0"))


@pytest.fixture
def kills(request: pytest.FixtureRequest) -> Callable[[int], None]:
    """Say how many processes the test killed."""
    return lambda count: request.node.user_properties.append((KILLS, count))


class KillCount:
    """A plugin of the process that hears of all tests."""

    def __init__(self) -> None:
        self.count = 0
        self._began = time.monotonic()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """The properties of a test are in the report of each of its phases; the last one has them all."""
        if report.when == "teardown":
            self.count += sum(value for name, value in report.user_properties if name == KILLS and isinstance(value, int))

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        """Too few kills are a failure, like any other."""
        if self.count < LEAST_KILLS and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        """The figure, and whether it is enough."""
        if self.count < LEAST_KILLS:
            terminalreporter.write_line(f"kills: {self.count}, and {LEAST_KILLS} were asked for", red=True)
        elif self.count:
            terminalreporter.write_line(f"kills: {self.count}, in {time.monotonic() - self._began:.0f} s")
