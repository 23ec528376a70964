"""The count of kills is a promise of the slow tests: too few of them fail the session."""

from types import SimpleNamespace
from typing import Any

import pytest

from tests.faults import kill_count
from tests.faults.kill_count import KillCount


def report(when: str, *counts: int) -> Any:
    return SimpleNamespace(when=when, user_properties=[("kills", count) for count in counts])


@pytest.mark.parametrize(
    ("least", "ends"), [(0, pytest.ExitCode.OK), (12, pytest.ExitCode.OK), (13, pytest.ExitCode.TESTS_FAILED)]
)
def test_kills_are_summed_over_all_tests_and_too_few_fail_the_session(
    monkeypatch: pytest.MonkeyPatch, least: int, ends: int
) -> None:
    monkeypatch.setattr(kill_count, "LEAST_KILLS", least)
    count = KillCount()
    for one in (report("call", 5), report("teardown", 5), report("teardown", 3, 4), report("teardown")):
        count.pytest_runtest_logreport(one)
    session: Any = SimpleNamespace(exitstatus=pytest.ExitCode.OK)
    count.pytest_sessionfinish(session)
    assert (count.count, session.exitstatus) == (12, ends)
