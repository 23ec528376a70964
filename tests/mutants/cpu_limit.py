"""A pytest plugin of `make mutants`: a change that makes a test endless is ended by the CPU it used, never by the clock."""

import math
import os
import resource
import time

MAX_TEST_S = 10
"""CPU that one test may use; the slowest uses about three seconds."""


def pytest_runtest_setup() -> None:
    """Move the limit ahead, in the process that tries a change alone: the one that it was forked from goes on after it."""
    if "__mutmut_" in os.environ.get("MUTANT_UNDER_TEST", ""):
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(time.process_time()) + MAX_TEST_S, hard))
