"""A rule cannot take more than its budget: its process is killed, its policy suspended, and all else goes on."""

import random
from collections.abc import Iterator

import psutil
import pyarrow as pa
import pytest

from pipelines.policy.engine import Tagger
from pipelines.policy.guard import Budget, GuardedTagger, name_of
from schemas.contract import Column, ColumnType, Contract
from schemas.policy import Policy, Rule

CONTRACT = Contract("probe", "1.0.0", (Column("s", ColumnType.STRING), Column("x", ColumnType.FLOAT64)))
PLAIN = Policy("plain", ("probe",), (Rule("high", "x > 1"), Rule("low", "x < 1")))
WORDS = Policy("words", ("probe",), (Rule("error", r"matches(s, '^E[0-9]+')"), Rule("high", "x > 1")))
# Linear in the text, with a factor of some hundred microseconds a character: half a minute for the text below.
SLOW = Policy("slow", ("probe",), (Rule("slow", "matches(s, '(?:a.{0,40}b.{0,40}){20}c')"),))
LONG = "".join(random.Random(1).choices("ab", k=200_000))


@pytest.fixture
def taggers() -> Iterator[list[GuardedTagger]]:
    made: list[GuardedTagger] = []
    yield made
    for each in made:
        each.close()


def rows(*texts: str | None) -> pa.Table:
    return pa.table({"s": pa.array(texts, pa.string()), "x": [float(n) for n in range(len(texts))]})


def test_policies_without_regular_expressions_start_no_process(taggers: list[GuardedTagger]) -> None:
    tagger = GuardedTagger.compile([PLAIN], CONTRACT)
    taggers.append(tagger)
    assert tagger.tag(rows("a", "b", "c"))[0].to_pylist() == [["low"], [], ["high"]]
    assert tagger._worker is None


def test_a_guarded_tagger_gives_what_a_plain_one_gives_in_the_same_order(taggers: list[GuardedTagger]) -> None:
    other = Policy("after", ("probe",), (Rule("third", "x = 2"),))
    policies = [PLAIN, WORDS, other]
    tagger = GuardedTagger.compile(policies, CONTRACT)
    taggers.append(tagger)
    for table in (rows("E7", "E", "xE1"), rows(None, "E1\nE2", ""), rows()):
        wanted = Tagger.compile(policies, CONTRACT).tag(table)
        assert [each.to_pylist() for each in tagger.tag(table)] == [each.to_pylist() for each in wanted]
    assert tagger.suspended == {}


def test_a_rule_over_its_budget_is_killed_suspended_and_the_others_go_on(taggers: list[GuardedTagger]) -> None:
    tagger = GuardedTagger.compile([PLAIN, SLOW, WORDS], CONTRACT, Budget(start_ms=1_500, us_per_row=0))
    taggers.append(tagger)
    table = rows("b", LONG, "E1")
    assert tagger.tag(table)[0].to_pylist()[-1] == ["high", "error", "high"]
    assert list(tagger.suspended) == [name_of(SLOW)]
    assert "took more than its budget of 1.5 s for 3 rows" in tagger.suspended[name_of(SLOW)]
    assert tagger.tag(rows("E1", "b", "b"))[0].to_pylist() == [["low", "error"], [], ["high", "high"]]


def test_a_process_that_dies_of_itself_suspends_the_policy_it_was_at(taggers: list[GuardedTagger]) -> None:
    tagger = GuardedTagger.compile([WORDS], CONTRACT)
    taggers.append(tagger)
    tagger.tag(rows("E1"))
    (child,) = [each for each in psutil.Process().children() if "pipelines.policy.worker" in " ".join(each.cmdline())]
    child.kill()
    child.wait()
    assert tagger.tag(rows("E1"))[0].to_pylist() == [[]]
    assert "ended its process" in tagger.suspended[name_of(WORDS)]
