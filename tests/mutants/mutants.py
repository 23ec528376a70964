"""Change the modules that decide, one small change at a time: does a module's own test notice each?

`tests/mutants/modules.toml` lists the modules and each one's own tests; `tests/mutants/survivors.toml` the changes that no
test can notice, each with its reason. Ends with 1 where a change went unnoticed and is not explained there, where an
explanation is of no surviving change any more, or where fewer than 90 % of all changes were noticed.
"""

import argparse
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import tempfile
import time
import tomllib
from collections.abc import Collection, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
FOLDER = ROOT / "tests" / "mutants"
COPIED = ("catchment", "edge_agent", "pipelines", "schemas", "tests")
LEAST_NOTICED = 0.9
# As mutmut counts exit codes of pytest: a failed test, an error within pytest; and its own ways to end what never ends.
NOTICED, ENDLESS = {1, 3}, {36, 24, -24, 152, 255}
MAX_MEMORY_BYTES = 4 << 30  # a change that makes a loop endless often fills a list in it
DECORATED = re.compile(
    r"^    @(?!(?:class|static)method\n)(\w+)\n((    def (\w+)\(.*\n(?:(?:     .*)?\n)*?)(?=    \S|\S|\Z))", re.MULTILINE
)


@dataclass(frozen=True, slots=True, order=True)
class Change:
    """A small change in a module: the lines of one function before and after it."""

    module: str
    function: str
    old: str
    new: str


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of the changes to one module."""

    module: str
    noticed: int
    endless: int
    unnoticed: tuple[Change, ...]
    took_s: float

    @property
    def total(self) -> int:
        """All changes that were tried."""
        return self.noticed + self.endless + len(self.unnoticed)


class MutantsError(Exception):
    """The tests of a module could not be tried; the message says why."""


def plain_decorators(source: str) -> str:
    """Write a method's decorator as a call after it: the module means the same, and mutmut leaves decorated methods alone."""
    return DECORATED.sub(lambda found: f"{found[2].rstrip()}\n\n    {found[4]} = {found[1]}({found[4]})\n\n", source)


def prepare(workplace: Path, module: str, tests: Sequence[str]) -> None:
    """Copy what the tests need into a folder of its own: the checkout is never changed."""
    for name in COPIED:
        shutil.copytree(ROOT / name, workplace / name, ignore=shutil.ignore_patterns("__pycache__"))
    changed = workplace / module
    changed.write_text(plain_decorators(changed.read_text()))
    settings = {
        "source_paths": [module],
        "also_copy": list(COPIED),
        "pytest_add_cli_args_test_selection": list(tests),
        "use_git_change_detection": False,
        "pytest_add_cli_args": ["-p", "tests.mutants.cpu_limit"],
        "timeout_constant": 600.0,  # by the clock; `cpu_limit` ends what is endless, however busy the machine is
    }
    table = "\n".join(f"{key} = {json.dumps(value)}" for key, value in settings.items())
    project = (ROOT / "pyproject.toml").read_text()
    (workplace / "pyproject.toml").write_text(f"{project}\n[tool.mutmut]\n{table}\n")


def call(workplace: Path, *arguments: str) -> str:
    """Run mutmut in a workplace; its output."""
    command = [str(Path(sys.executable).parent / "mutmut"), *arguments]
    environment = {**os.environ, "HYPOTHESIS_PROFILE": "mutants"}
    done = subprocess.run(
        command, cwd=workplace, env=environment, check=False, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    if done.returncode:
        raise MutantsError(f"mutmut {' '.join(arguments)} ended with {done.returncode}:\n{done.stdout[-4000:]}")
    return done.stdout


def change_of(module: str, name: str, diff: str) -> Change:
    """The change that a unified diff shows."""
    lines = [line for line in diff.splitlines() if line[:1] in "+-" and line[:3] not in ("+++", "---")]
    old, new = ("\n".join(line[1:].strip() for line in lines if line[0] == sign) for sign in "-+")
    function = name.rpartition(".")[2].rpartition("__mutmut_")[0].removeprefix("x_").removeprefix("xǁ").replace("ǁ", ".")
    return Change(module, function, old, new)


def try_module(module: str, tests: Sequence[str]) -> Outcome:
    """Try every change of one module."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="catchment-mutants-") as folder:
        workplace = Path(folder)
        prepare(workplace, module, tests)
        call(workplace, "run", "--max-children", "1")
        codes: dict[str, int] = json.loads((workplace / "mutants" / f"{module}.meta").read_text())["exit_code_by_key"]
        left = [name for name, code in codes.items() if code not in NOTICED | ENDLESS]
        unnoticed = tuple(sorted(change_of(module, name, call(workplace, "show", name)) for name in left))
    noticed, endless = (sum(code in some for code in codes.values()) for some in (NOTICED, ENDLESS))
    outcome = Outcome(module, noticed, endless, unnoticed, time.monotonic() - began)
    print(
        f"{module}: {noticed + endless} of {outcome.total} noticed ({endless} as endless) in {outcome.took_s:.0f} s", flush=True
    )
    return outcome


def explained(modules: Collection[str]) -> dict[Change, str]:
    """The survivors of these modules that the kept file explains."""
    entries = tomllib.loads((FOLDER / "survivors.toml").read_text()).get("survivor", [])
    known = {Change(one["module"], one["function"], one["old"], one["new"]): one["reason"] for one in entries}
    if any(not reason.strip() for reason in known.values()):
        raise MutantsError("tests/mutants/survivors.toml: each survivor needs a reason")
    return {change: reason for change, reason in known.items() if change.module in set(modules)}


def show(change: Change) -> str:
    """A change as an entry of survivors.toml that lacks its reason."""
    pairs = ((name, getattr(change, name)) for name in ("module", "function", "old", "new"))
    return "\n".join(
        ["[[survivor]]", *(f"{key} = {json.dumps(value, ensure_ascii=False)}" for key, value in pairs), 'reason = ""']
    )


def report(outcomes: Sequence[Outcome]) -> int:
    """Print the sum and what is not in order; the exit code."""
    known = explained([outcome.module for outcome in outcomes])
    unnoticed = {change for outcome in outcomes for change in outcome.unnoticed}
    total = sum(outcome.total for outcome in outcomes)
    survived = sum(len(outcome.unnoticed) for outcome in outcomes)
    for change in sorted(unnoticed - known.keys()):
        print(f"\n# not noticed: write a test that does, or say in tests/mutants/survivors.toml why none can\n{show(change)}")
    for change in sorted(known.keys() - unnoticed):
        print(f"\n# explained in tests/mutants/survivors.toml, but there is no such survivor: take it out\n{show(change)}")
    share = 1 - survived / total
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    print(
        f"\nmutants: {total - survived} of {total} noticed ({share:.1%}); {len(unnoticed & known.keys())} explained survivors;"
        f" {used.ru_utime + used.ru_stime:.0f} s of CPU"
    )
    return int(unnoticed != known.keys() or share < LEAST_NOTICED)


def choose(parts: Sequence[str], *, is_smoke: bool) -> list[tuple[str, list[str]]]:
    """The listed modules with one of these parts in their path, and their tests; no parts: all, or those of the smoke."""
    listed = tomllib.loads((FOLDER / "modules.toml").read_text())["module"]
    strays = [part for part in parts if not any(part in one["path"] for one in listed)]
    if strays:
        raise MutantsError(f"no module {', '.join(strays)}; there are {', '.join(one['path'] for one in listed)}")
    for path in (path for one in listed for path in (one["path"], *one["tests"]) if not (ROOT / path).is_file()):
        found = [str(same.relative_to(ROOT)) for folder in COPIED for same in (ROOT / folder).rglob(Path(path).name)]
        raise MutantsError(f"no {path}; did it become {' or '.join(found) or 'another name'}? correct tests/mutants/modules.toml")
    chosen = [one for one in listed if not parts or any(part in one["path"] for part in parts)]
    return [(one["path"], one["tests"]) for one in chosen if not is_smoke or one.get("is_smoke", False)]


def main() -> int:
    """Try the modules that are named, or all."""
    parser = argparse.ArgumentParser(description="Small changes to the deciding modules: does a test notice each?")
    parser.add_argument("modules", nargs="*", help="paths or parts of them; none: all of tests/mutants/modules.toml")
    parser.add_argument("--smoke", action="store_true", help="only those marked for it: does it all still work?")
    parser.add_argument("--jobs", type=int, default=2, help="modules at once (2)")
    options = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_DATA, (MAX_MEMORY_BYTES, MAX_MEMORY_BYTES))
    try:
        with ThreadPoolExecutor(options.jobs) as pool:
            return report(list(pool.map(lambda one: try_module(*one), choose(options.modules, is_smoke=options.smoke))))
    except MutantsError as error:
        print(f"mutants: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
