"""A rule cannot take more than its budget: its process is killed, its policy suspended, and all else goes on."""

import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pytest
from typer.testing import CliRunner

from pipelines.commands.policy import policy_app
from pipelines.errors import RefusedError
from pipelines.inspect.suspended import SuspensionBook
from pipelines.lake.lake import lake_at
from pipelines.policy import guard
from pipelines.policy.documents import parse_policy
from pipelines.policy.engine import Tagger
from pipelines.policy.guard import Budget, SandboxedTagger, WorkerDiedError, name_of
from schemas.contract import Column, ColumnType, Contract, encode_contract
from schemas.policy import Policy, Rule

CONTRACT = Contract("probe", "1.0.0", (Column("s", ColumnType.STRING), Column("x", ColumnType.FLOAT64)))
PLAIN = Policy("plain", ("probe",), (Rule("high", "x > 1"), Rule("low", "x < 1")))
WORDS = Policy("words", ("probe",), (Rule("error", r"matches(s, '^E[0-9]+')"), Rule("high", "x > 1")))
# Linear in the text, with a factor of some hundred microseconds a character: half a minute for the text below.
SLOW = Policy("slow", ("probe",), (Rule("slow", "matches(s, '(?:a.{0,40}b.{0,40}){20}c')"),))
LONG = "".join(random.Random(1).choices("ab", k=200_000))


@pytest.fixture
def taggers() -> Iterator[list[SandboxedTagger]]:
    made: list[SandboxedTagger] = []
    yield made
    for each in made:
        each.close()


def rows(*texts: str | None) -> pa.Table:
    return pa.table({"s": pa.array(texts, pa.string()), "x": [float(n) for n in range(len(texts))]})


def test_policies_without_regular_expressions_start_no_process(taggers: list[SandboxedTagger]) -> None:
    tagger = SandboxedTagger.compile([PLAIN], CONTRACT)
    taggers.append(tagger)
    assert tagger.tag(rows("a", "b", "c"))[0].to_pylist() == [["low"], [], ["high"]]
    assert tagger._worker is None


@pytest.mark.slow
def test_a_guarded_tagger_gives_what_a_plain_one_gives_in_the_same_order(taggers: list[SandboxedTagger]) -> None:
    other = Policy("after", ("probe",), (Rule("third", "x = 2"),))
    policies = [PLAIN, WORDS, other]
    tagger = SandboxedTagger.compile(policies, CONTRACT)
    taggers.append(tagger)
    for table in (rows("E7", "E", "xE1"), rows(None, "E1\nE2", ""), rows()):
        wanted = Tagger.compile(policies, CONTRACT).tag(table)
        assert [each.to_pylist() for each in tagger.tag(table)] == [each.to_pylist() for each in wanted]
    assert tagger.suspended == {}


@pytest.mark.slow
def test_a_rule_over_its_budget_is_killed_suspended_and_the_others_go_on(taggers: list[SandboxedTagger]) -> None:
    tagger = SandboxedTagger.compile([PLAIN, SLOW, WORDS], CONTRACT, Budget(start_ms=1_500, us_per_row=0))
    taggers.append(tagger)
    table = rows("b", LONG, "E1")
    assert tagger.tag(table)[0].to_pylist()[-1] == ["high", "error", "high"]
    assert list(tagger.suspended) == [name_of(SLOW)]
    assert "took more than its budget of 1.5 s for 3 rows" in tagger.suspended[name_of(SLOW)]
    assert tagger.tag(rows("E1", "b", "b"))[0].to_pylist() == [["low", "error"], [], ["high", "high"]]


def test_a_process_that_dies_of_itself_suspends_the_policy_it_was_at(taggers: list[SandboxedTagger]) -> None:
    tagger = SandboxedTagger.compile([WORDS], CONTRACT)
    taggers.append(tagger)
    tagger.tag(rows("E1"))
    (child,) = [each for each in psutil.Process().children() if "pipelines.policy.worker" in " ".join(each.cmdline())]
    child.kill()
    child.wait()
    assert tagger.tag(rows("E1"))[0].to_pylist() == [[]]
    assert "ended its process" in tagger.suspended[name_of(WORDS)]


ORPHAN = """
import random, sys
import pyarrow as pa
from pipelines.policy.guard import RuleWorker
from schemas.contract import decode_contract
from schemas.policy import Policy, Rule
slow = Policy("slow", ("probe",), (Rule("slow", sys.argv[1]),))
worker = RuleWorker([slow], decode_contract(sys.argv[2].encode()))
print(worker._process.pid, flush=True)
table = pa.table({"s": ["".join(random.Random(1).choices("ab", k=4_000_000))], "x": [1.0]})
worker.ask(0, table, 600)
"""


@pytest.mark.slow
def test_the_process_of_risky_rules_does_not_outlive_a_killed_run() -> None:
    command = [sys.executable, "-c", ORPHAN, SLOW.rules[0].when, encode_contract(CONTRACT).decode()]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        child = psutil.Process(int(run.stdout.readline()))
        run.kill()
    psutil.wait_procs([child], timeout=30)
    assert not child.is_running() or child.status() == psutil.STATUS_ZOMBIE


def test_a_suspension_outlives_the_process_and_ends_with_a_new_version(tmp_path: Path, taggers: list[SandboxedTagger]) -> None:
    book, short = SuspensionBook(lake_at(tmp_path)), Budget(start_ms=200, us_per_row=0)
    first = SandboxedTagger.compile([SLOW], CONTRACT, short, book)
    after_restart = SandboxedTagger.compile([SLOW, PLAIN], CONTRACT, book=book)
    taggers += [first, after_restart]
    assert first.tag(rows(LONG))[0].to_pylist() == [[]]
    assert after_restart.tag(rows("E1"))[0].to_pylist() == [["low"]]
    (kept,) = book.in_force([SLOW, PLAIN])
    assert (kept.kind, kept.name, kept.stream) == ("policy", name_of(SLOW), "probe")
    assert "took more than its budget of 0.2 s" in kept.reason
    newer = Policy("slow", ("probe",), (Rule("slow", "matches(s, 'c')"),))
    assert book.policy(newer.label) is None
    assert book.lift([newer]) == (f"policy {name_of(SLOW)}",)
    assert (after_restart._is_suspended(SLOW.label), book.in_force([SLOW])) == (False, ())


def test_a_process_that_somebody_else_ended_is_no_reason_to_keep_a_suspension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = iter([WorkerDiedError("ended its process"), np.packbits([1, 0])])

    class Ended:
        """Ends once, as when all processes of a service are told to stop; its successor answers."""

        def __init__(self, _policies: object, _contract: object) -> None:
            pass

        def ask(self, _index: int, _table: pa.Table, _seconds: float) -> object:
            answer = next(answers)
            if isinstance(answer, WorkerDiedError):
                raise answer
            return answer

        def kill(self) -> None:
            pass

    monkeypatch.setattr(guard, "RuleWorker", Ended)
    tagger = SandboxedTagger.compile([WORDS], CONTRACT, book=SuspensionBook(lake_at(tmp_path)))
    assert tagger.tag(rows("E1"))[0].to_pylist() == [["error"]]
    assert SuspensionBook(lake_at(tmp_path)).in_force([WORDS]) == ()


def test_an_entry_that_cannot_be_read_suspends_and_says_what_to_do(tmp_path: Path, taggers: list[SandboxedTagger]) -> None:
    book = SuspensionBook(lake_at(tmp_path))
    book.suspend_policy(WORDS.label, "probe", "late")
    (tmp_path / "policies" / "suspended" / f"{WORDS.label}.json").write_text("{")
    taggers.append(SandboxedTagger.compile([WORDS], CONTRACT, book=book))
    assert taggers[0].tag(rows("E1"))[0].to_pylist() == [[]]
    assert "remove it to lift" in taggers[0].suspended[WORDS.label]


def test_who_asks_strictly_is_refused_and_nothing_is_suspended(tmp_path: Path, taggers: list[SandboxedTagger]) -> None:
    book = SuspensionBook(lake_at(tmp_path))
    strict = SandboxedTagger.compile([SLOW], CONTRACT, Budget(start_ms=200, us_per_row=0), book, is_strict=True)
    taggers.append(strict)
    with pytest.raises(RefusedError, match=r"policy slow@.*, stream probe: the policy took more than its budget"):
        strict.verdicts(rows(LONG))
    assert (strict.suspended, book.in_force([SLOW])) == ({}, ())
    book.suspend_policy(SLOW.label, "probe", "late")
    with pytest.raises(RefusedError, match="is suspended: late; `catchment policy apply` of a new version"):
        strict.verdicts(rows("b"))


def test_the_commands_show_a_suspension_refuse_to_retag_and_lift_it(tmp_path: Path, commit_rows: Callable[..., Path]) -> None:
    root, file = commit_rows(1, 10), tmp_path / "words.yaml"

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(policy_app, [*arguments, "--lake", str(root)], env={"COLUMNS": "300"})
        if result.exception is not None:
            raise result.exception
        return result.output

    def write(pattern: str) -> Policy:
        text = f"id: words\nstreams: [vehicle_telemetry]\nrules: [{{tag: car, when: \"matches(device, '{pattern}')\"}}]\n"
        file.write_text(text)
        return parse_policy(text)

    old = write("^car-1")
    run("apply", str(file))
    SuspensionBook(lake_at(root)).suspend_policy(old.label, "vehicle_telemetry", "it was late")
    assert "it was late" in run("active", "--json")
    assert "lifts it" in run("active")
    with pytest.raises(RefusedError, match="is suspended: it was late"):
        run("retag", "vehicle_telemetry")
    write("^car-2")
    assert f"lifted the suspension of policy {old.label}" in run("apply", str(file))
    assert "it was late" not in run("active", "--json")
    assert "10 rows" in run("retag", "vehicle_telemetry")
    SuspensionBook(lake_at(root)).suspend_policy(parse_policy(file.read_text()).label, "vehicle_telemetry", "late again")
    assert "lifted" in run("withdraw", "words")
