"""What `make mutants` rests on: lists that agree with the checkout, and decorators written so that methods can be changed."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest

from tests.mutants import mutants
from tests.mutants.mutants import ROOT, Change, Outcome, change_of, choose, explained, plain_decorators, report

MODULES: list[dict[str, Any]] = tomllib.loads((mutants.FOLDER / "modules.toml").read_text())["module"]


def test_every_listed_module_and_its_tests_are_there() -> None:
    paths = [module["path"] for module in MODULES]
    assert sorted(set(paths)) == sorted(paths)
    for path in [*paths, *(test for module in MODULES for test in module["tests"])]:
        assert (ROOT / path).is_file(), path
    assert all(module["tests"] for module in MODULES)


def test_every_explained_survivor_is_of_lines_that_are_there_and_says_why() -> None:
    for change, reason in explained([module["path"] for module in MODULES]).items():
        lines = {line.strip() for line in (ROOT / change.module).read_text().splitlines()}
        assert set(change.old.splitlines()) <= lines, change
        assert len(reason.split()) > 3, change
    listed = tomllib.loads((mutants.FOLDER / "survivors.toml").read_text()).get("survivor", [])
    assert {one["module"] for one in listed} <= {module["path"] for module in MODULES}


@pytest.mark.parametrize("path", [module["path"] for module in MODULES])
def test_a_module_with_plain_decorators_has_no_other_kind_and_all_else(path: str) -> None:
    source = (ROOT / path).read_text()
    plain = plain_decorators(source)
    compile(plain, path, "exec")
    assert re.findall(r"^    @(\w+)$", plain, re.MULTILINE) == ["classmethod"] * source.count("    @classmethod\n")
    assert plain.count(" = property(") == source.count("    @property\n")
    assert plain.count("def ") == source.count("def ")


def test_a_method_decorated_by_a_call_after_it_is_what_it_was() -> None:
    source = """class A:
    @property
    def b(self) -> int:
        # A line of its own.

        return 3

    def c(self): ...
"""
    scope: dict[str, Any] = {}
    exec(plain_decorators(source), scope)
    assert isinstance(scope["A"].b, property)
    assert scope["A"]().b == 3


def test_a_change_is_known_by_its_function_and_lines_and_not_by_its_number() -> None:
    diff = "# a.b\n--- x\n+++ x\n@@ -1,2 +1,2 @@\n def f():\n-    return 1\n+    return 2\n"
    assert change_of("a/b.py", "a.b.xǁCǁf__mutmut_9", diff) == Change("a/b.py", "C.f", "return 1", "return 2")
    assert change_of("a/b.py", "a.b.x__f__mutmut_1", diff).function == "_f"


def _folder(tmp_path: Path, survivors: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "survivors.toml").write_text(survivors)
    monkeypatch.setattr(mutants, "FOLDER", tmp_path)


ONE = Change("a.py", "f", "x < 1", "x <= 1")


def test_a_survivor_fails_the_run_until_it_is_explained(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    outcome = Outcome("a.py", 98, 1, (ONE,), 1.0)
    _folder(tmp_path, "", monkeypatch)
    assert report([outcome]) == 1
    entry = mutants.show(ONE)
    assert entry in capsys.readouterr().out
    _folder(tmp_path, entry.replace('reason = ""', 'reason = "x is never 1"'), monkeypatch)
    assert report([outcome]) == 0
    assert "99 of 100 noticed (99.0%); 1 explained" in capsys.readouterr().out


def test_an_explanation_of_no_survivor_fails_the_run_of_its_module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _folder(tmp_path, mutants.show(ONE).replace('reason = ""', 'reason = "x is never 1"'), monkeypatch)
    assert report([Outcome("a.py", 100, 0, (), 1.0)]) == 1
    assert report([Outcome("b.py", 100, 0, (), 1.0)]) == 0


def test_an_explanation_without_a_reason_and_too_many_survivors_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _folder(tmp_path, mutants.show(ONE), monkeypatch)
    with pytest.raises(mutants.MutantsError, match="each survivor needs a reason"):
        report([Outcome("a.py", 99, 0, (ONE,), 1.0)])
    _folder(tmp_path, mutants.show(ONE).replace('reason = ""', 'reason = "x is never 1"'), monkeypatch)
    assert report([Outcome("a.py", 8, 0, (ONE,), 1.0)]) == 1


def test_modules_are_chosen_by_parts_of_their_path_and_a_part_of_none_is_refused() -> None:
    assert [path for path, _ in choose([], is_smoke=False)] == [module["path"] for module in MODULES]
    assert [path for path, _ in choose(["ranges", "quota"], is_smoke=False)] == [
        module["path"] for module in MODULES if "ranges" in module["path"] or "quota" in module["path"]
    ]
    assert [path for path, _ in choose([], is_smoke=True)] == [module["path"] for module in MODULES if module.get("is_smoke")]
    with pytest.raises(mutants.MutantsError, match=r"^no module nowhere; there are pipelines/"):
        choose(["ranges", "nowhere"], is_smoke=False)


def test_a_module_that_moved_is_named_with_where_it_is_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "modules.toml").write_text('[[module]]\npath = "old/ranges.py"\ntests = ["tests/mutants/test_mutants.py"]\n')
    monkeypatch.setattr(mutants, "FOLDER", tmp_path)
    with pytest.raises(mutants.MutantsError, match=r"^no old/ranges.py; did it become .*schemas/ranges.py.*modules.toml$"):
        choose([], is_smoke=False)
