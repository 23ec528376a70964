"""The rules of the house that a reader could forget: arrows, sizes, names, and an argument for every dependency."""

import ast
import io
import re
import shutil
import subprocess
import sys
import tokenize
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

PACKAGES = ("catchment", "edge_agent", "pipelines", "schemas")
MAX_MODULE_LINES = 500
MAX_FUNCTION_LINES = 39  # without signature, docstring and blank lines
# A name that says nothing collects everything.
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "manager", "managers", "common", "misc", "base", "core", "lib", "shared"}

# Words that name no thing: STYLE says message, reported, requested, logged, record_count. As parts of words they are free.
EMPTY_WORDS = re.compile(r"(^|_)(told|said|asked)(_|$)", re.IGNORECASE)
LOG_METHODS = {"debug", "info", "warning", "error", "critical", "exception"}
EVENT = re.compile(r"[a-z][a-z0-9]*(_[a-z0-9]+)*")
# Its one call logs what a device causes, once a minute for each event; its callers pass literal events.
EVENTS_OF_CALLERS = {"pipelines/rollout/server.py"}

# Files that grow in place and are synced before they are renamed; each syncs the folder after.
RENAMES_ITSELF = {"pipelines/bridge/segment.py", "edge_agent/sources/directory/source.py"}  # the second moves what others wrote

# Small modules with one importer that stay by themselves; a module's docstring may say so too: "Stands alone because ...".
MIN_MODULE_LINES = 80
STANDS_ALONE = {
    "catchment.runtime.renamed_keys": "goes as a whole when the old names go",
}


@dataclass(frozen=True)
class Module:
    """A module of the product, read and parsed once for all tests.

    Attributes:
        name: its path below the root of the repository.
        text: what stands in it.
        tree: its syntax.
        nodes: all of the tree.
    """

    path: Path
    name: str
    text: str
    tree: ast.Module
    nodes: tuple[ast.AST, ...]

    @property
    def lines(self) -> list[str]:
        return self.text.splitlines()

    @property
    def dotted(self) -> str:
        return self.name.removesuffix(".py").replace("/", ".")


@cache
def _modules(root: Path) -> tuple[Module, ...]:
    return tuple(_read(root, path) for package in PACKAGES for path in sorted((root / package).rglob("*.py")))


def _read(root: Path, path: Path) -> Module:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    return Module(path, str(path.relative_to(root)), text, tree, tuple(ast.walk(tree)))


def test_import_arrows_hold(repository_root: Path) -> None:
    linter = shutil.which("lint-imports", path=str(Path(sys.executable).parent))
    assert linter, "lint-imports is not installed next to this Python; run make setup"
    done = subprocess.run([linter, "--no-cache"], cwd=repository_root, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_no_module_is_too_long_to_read(repository_root: Path) -> None:
    lengths = {module.name: len(module.lines) for module in _modules(repository_root)}
    assert {name: count for name, count in lengths.items() if count > MAX_MODULE_LINES} == {}


def _line_count(function: ast.FunctionDef | ast.AsyncFunctionDef, lines: list[str]) -> int:
    """The lines of a body without its docstring and blank lines: a command's signature has a line for each option."""
    body = function.body[1:] if ast.get_docstring(function) else function.body
    return sum(bool(line.strip()) for line in lines[body[0].lineno - 1 : function.end_lineno]) if body else 0


def test_no_function_is_too_long_to_read(repository_root: Path) -> None:
    long = {}
    for module in _modules(repository_root):
        lines = module.lines
        for node in module.nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                count = _line_count(node, lines)
                if count > MAX_FUNCTION_LINES:
                    long[f"{module.name}:{node.lineno} {node.name}"] = count
    assert long == {}


def _imports(module: Module, modules: set[str]) -> set[str]:
    """The modules of the house that a module imports, at its head or later."""
    found = {alias.name for node in module.nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in module.nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            below = {f"{node.module}.{alias.name}" for alias in node.names} & modules
            found |= below or {node.module}
    return found & modules


def test_no_small_module_serves_one_other_alone(repository_root: Path) -> None:
    """Else a reader opens two files for one thought."""
    modules = {module.dotted: module for module in _modules(repository_root)}
    importers: dict[str, set[str]] = {name: set() for name in modules}
    for name, module in modules.items():
        for imported in _imports(module, set(modules)) - {name}:
            importers[imported].add(name)
    alone = {
        name: next(iter(importers[name]))
        for name, module in modules.items()
        if len(importers[name]) == 1
        and len(module.lines) < MIN_MODULE_LINES
        and "Stands alone because" not in (ast.get_docstring(module.tree) or "")
    }
    assert {name: importer for name, importer in alone.items() if name not in STANDS_ALONE} == {}, (
        "join each to its importer, or say why it stands alone"
    )
    assert STANDS_ALONE.keys() - alone.keys() == set(), "these need no reason any more; remove them"


def test_no_module_has_a_name_that_says_nothing(repository_root: Path) -> None:
    paths = [module.path for module in _modules(repository_root)]
    assert [path for path in paths if path.stem in EMPTY_NAMES or path.parent.name in EMPTY_NAMES] == []


def test_every_module_says_what_it_is_for(repository_root: Path) -> None:
    silent = [module.name for module in _modules(repository_root) if module.text.strip() and not ast.get_docstring(module.tree)]
    assert silent == []


def test_no_error_is_passed_over_without_a_word(repository_root: Path) -> None:
    """An except clause whose whole body is `pass` must say next to it why nothing is to be done."""
    silent = []
    for module in _modules(repository_root):
        lines = module.lines
        handlers = [node for node in module.nodes if isinstance(node, ast.ExceptHandler)]
        silent += [
            f"{module.name}:{handler.lineno}"
            for handler in handlers
            if len(handler.body) == 1 and isinstance(handler.body[0], ast.Pass) and "#" not in lines[handler.body[0].lineno - 1]
        ]
    assert silent == []


def test_files_take_their_place_only_through_the_atomic_module(repository_root: Path) -> None:
    """A rename without the fsyncs around it can lose the file in a power cut."""
    strays = [
        f"{module.name}:{number}"
        for module in _modules(repository_root)
        if module.path.name != "atomic_files.py" and module.name not in RENAMES_ITSELF
        for number, line in enumerate(module.lines, 1)
        if re.search(r"\bos\.(replace|rename)\(|\bshutil\.move\(|[a-z_]path\.(rename|replace)\(", line)
    ]
    assert strays == []


def _identifiers(module: Module) -> Iterator[tuple[int, str]]:
    for node in module.nodes:
        line = getattr(node, "lineno", 0)
        for field in ("id", "attr", "arg", "name", "asname", "rest"):
            if isinstance(word := getattr(node, field, None), str):
                yield line, word


def test_no_identifier_is_of_a_word_that_names_no_thing(repository_root: Path) -> None:
    """Serialised names that hold such a word stay: they stand in strings (`rename=`, a column's name), which this leaves out."""
    found = [
        f"{module.name}:{line}: {word}"
        for module in _modules(repository_root)
        for line, word in _identifiers(module)
        if EMPTY_WORDS.search(re.sub(r"(?<=[a-z])(?=[A-Z])", "_", word))
    ]
    assert found == []


def test_every_logger_is_named_log(repository_root: Path) -> None:
    found = [
        f"{module.name}:{number}"
        for module in _modules(repository_root)
        for number, line in enumerate(module.lines, 1)
        if "structlog.get_logger(" in line and not line.startswith("log = structlog.get_logger(__name__)")
    ]
    assert found == []


def test_every_log_event_is_a_literal_in_snake_case(repository_root: Path) -> None:
    found, count = [], 0
    for module in _modules(repository_root):
        name = module.name
        for node in module.nodes:
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=method)) if method in LOG_METHODS:
                    event = node.args[0] if node.args else None
                    count += 1
                    is_event = isinstance(event, ast.Constant) and isinstance(event.value, str) and EVENT.fullmatch(event.value)
                    if not is_event and name not in EVENTS_OF_CALLERS:
                        found.append(f"{name}:{node.lineno}")
    assert found == []
    assert count > 150


def test_connections_to_a_broker_are_made_in_one_place(repository_root: Path) -> None:
    """A client made elsewhere would have its own TLS, time-outs and causes."""
    makers = [module.name for module in _modules(repository_root) if "CallbackAPIVersion" in module.text]
    assert makers == ["catchment/runtime/mqtt_link.py"]


def test_every_dependency_is_argued_for(repository_root: Path) -> None:
    project = tomllib.loads((repository_root / "pyproject.toml").read_text())["project"]
    requirements = project["dependencies"] + [one for extra in project["optional-dependencies"].values() for one in extra]
    names = {re.split(r"[\[<>=!~; ]", requirement)[0] for requirement in requirements} - {"catchment"}
    argued = set(re.findall(r"^\| `([a-z0-9-]+)", (repository_root / "docs/dependencies.md").read_text(), re.MULTILINE))
    assert sorted(names - argued) == [], "argue for them in docs/dependencies.md"
    assert sorted(argued - names) == [], "no longer dependencies; remove them from docs/dependencies.md"


def test_the_locks_hold_hashes_and_no_index_host(repository_root: Path) -> None:
    for name in ("requirements.lock", "requirements-agent.lock"):
        text = (repository_root / name).read_text()
        pinned = re.findall(r"^[a-z0-9].*==", text, re.MULTILINE)
        assert pinned
        assert len(re.findall(r"^[a-z0-9][^\n]*\\\n    --hash=", text, re.MULTILINE)) == len(pinned)
        assert "://" not in text
        assert not re.search(r"^-", text, re.MULTILINE)


def test_the_agents_lock_is_a_part_of_the_whole_lock(repository_root: Path) -> None:
    def pins(name: str) -> set[str]:
        return set(re.findall(r"^([a-z0-9][a-z0-9._-]*==[^ ;\\]+)", (repository_root / name).read_text(), re.MULTILINE))

    assert pins("requirements-agent.lock") <= pins("requirements.lock")
    assert len(pins("requirements-agent.lock")) < 30


# Where a process begins, or makes a folder that is a lake of its own, the lake is opened; all others are given it.
OPENS_LAKES = {
    "pipelines/commands/policy_lake.py",
    "pipelines/commands/training_set.py",
    "pipelines/imaging/work.py",  # a worker of a cut, which is sent texts only
    "pipelines/ingest/backfill.py",  # the small lake that segments are run in once more
    "pipelines/ingest/graph.py",  # a step of a run, on whatever machine it is
    "pipelines/ingest/loop.py",  # a loop is made of a configuration
    "pipelines/ingest/worker_main.py",
    "pipelines/lake/lake.py",
    "pipelines/open_lake.py",
    "pipelines/training/building/graph.py",  # a step of a build
}
# How other machines reach the files decides where work is done and what is watched, not how a file is read or written.
MAY_BE_REMOTE = {
    "pipelines/bridge/bridge.py",  # a bridge brings its segments to the bucket before it acknowledges them
    "pipelines/ingest/chips/loop.py",  # workers elsewhere cut slides of folders only
    "pipelines/ingest/graph.py",  # a run sends the address to its workers
    "pipelines/ingest/run.py",  # likewise
    "pipelines/lake/lake.py",
    "pipelines/status/survey.py",  # each role of a remote lake may be on a machine of its own
}


def _mentions(root: Path, pattern: str) -> set[str]:
    paths = [path for path in sorted((root / "pipelines").rglob("*.py")) if path.name not in ("store.py", "bucket_store.py")]
    return {str(path.relative_to(root)) for path in paths if re.search(pattern, path.read_text())}


def test_a_lake_is_opened_where_a_process_begins_and_passed_on(repository_root: Path) -> None:
    assert _mentions(repository_root, r"\blake_at\(") == OPENS_LAKES


def test_nobody_asks_whether_a_lake_is_remote(repository_root: Path) -> None:
    assert _mentions(repository_root, r"store\.is_on_disk\b|isinstance\([^)]*(Local|Bucket)Store\b") == set()
    assert _mentions(repository_root, r"\.remote_config\b") == MAY_BE_REMOTE


# Classes of both sides, or of a layer and the one below it, that mean the same thing each for its own side.
SHARED_CLASS_NAMES = {
    "ConfigError",
    "NotFoundError",
    "Policy",
    "Source",
    "UninspectableError",
}


def test_a_public_class_name_means_one_thing_in_all_packages(repository_root: Path) -> None:
    homes: dict[str, list[str]] = {}
    for module in _modules(repository_root):
        for node in module.tree.body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
                homes.setdefault(node.name, []).append(module.name)
    shared = {name: places for name, places in homes.items() if len(places) > 1}
    assert {name: places for name, places in shared.items() if name not in SHARED_CLASS_NAMES} == {}
    assert shared.keys() >= SHARED_CLASS_NAMES  # one that is unique leaves the list


# Words of our own making that the field does not know: see docs/glossary.md for those in their place.
COINED_WORDS = {
    "afield", "ballast", "crew", "desk", "fates", "flown", "governor", "heed", "ledgerhand", "leash", "leavings", "lineup",
    "sieve", "sift", "sifted", "suspicion", "teller", "upkeep", "vitals",
}  # fmt: skip


def test_no_identifier_of_the_product_is_of_a_coined_word(repository_root: Path) -> None:
    found: set[str] = set()
    for module in _modules(repository_root):
        for name in {name for _, name in _identifiers(module)}:
            words = re.findall(r"[A-Z]?[a-z]+|[A-Z]+", name)
            found |= {f"{module.name}: {name}" for word in words if word.lower() in COINED_WORDS}
    assert found == set()


# Riddles and old words, as in the pages: again, repair, permanently, next to and a person stand in their place.
UNUSUAL_WORDS = re.compile(r"\b(anew|mends?|mended|for ever|beside|whoever)\b", re.IGNORECASE)


def test_comments_docstrings_and_messages_are_in_the_words_of_the_field(repository_root: Path) -> None:
    found = {
        f"{module.name}:{token.start[0]}: {token.string.strip()[:80]}"
        for module in _modules(repository_root)
        if UNUSUAL_WORDS.search(module.text)
        for token in tokenize.generate_tokens(io.StringIO(module.text).readline)
        if token.type in {tokenize.COMMENT, tokenize.STRING} and UNUSUAL_WORDS.search(token.string)
    }
    assert found == set()
