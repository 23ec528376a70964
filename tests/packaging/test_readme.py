"""The README's first screen shows what a user types: each example is run as it stands."""

import re
import tomllib
from pathlib import Path

import catchment
from edge_agent.sources.registry import check_source
from schemas.contract import builtin_contract


def _blocks(root: Path, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (root / "README.md").read_text(), re.DOTALL)


def test_the_source_is_one_that_the_agent_takes(repository_root: Path, tmp_path: Path) -> None:
    (text,) = _blocks(repository_root, "toml")
    (source,) = tomllib.loads(text)["source"]
    check_source(source["kind"], source["options"] | {"path": str(tmp_path)}, builtin_contract(source["stream"]))


def test_the_policy_compiles_against_its_contract(repository_root: Path) -> None:
    (text,) = _blocks(repository_root, "yaml")
    assert catchment.Policy.parse(text).check() == []


def test_the_names_in_python_are_public(repository_root: Path) -> None:
    (text,) = _blocks(repository_root, "python")
    compile(text, "README.md", "exec")
    used = set(re.findall(r"catchment\.(\w+)", text))
    assert used
    assert used <= set(catchment.__all__)


def test_the_two_commands_are_targets_of_make(repository_root: Path) -> None:
    text = "\n".join(_blocks(repository_root, "sh"))
    makefile = (repository_root / "Makefile").read_text()
    for target in re.findall(r"^make (\S+)", text, re.MULTILINE):
        assert re.search(rf"^{target}:", makefile, re.MULTILINE), target
