"""Rules for the tests themselves: what may only become less, with how much of it there still is."""

import ast
from functools import cache
from pathlib import Path

PRODUCT = ("catchment", "edge_agent", "pipelines", "schemas")
# These begin with an underscore by a convention of others, and are public.
PUBLIC = {"_exit", "_repr_html_", "_replace", "_asdict", "_fields"}
# Times and limits are arguments with a default: give another one, instead of reaching into a module or an object.
# Both ceilings may only fall: who takes one away lowers them.
MAX_PRIVATE_TOUCHES = 38
MAX_PRIVATE_OR_DOTTED_PATCHES = 4
FIXTURES = {"core", "core_on_disk", "envelope", "as_ipc", "frames", "contract_with", "plant", "make_broker", "broker", "site"}


@cache
def _nodes(root: Path) -> list[tuple[str, ast.AST]]:
    paths = sorted((root / "tests").rglob("*.py"))
    return [(str(path.relative_to(root)), node) for path in paths for node in ast.walk(ast.parse(path.read_text()))]


def _is_private(name: str) -> bool:
    return name.startswith("_") and not name.startswith("__") and name not in PUBLIC


def _touches(node: ast.AST) -> int:
    """Private names of others that are read or written here; `self._x` is one's own."""
    if isinstance(node, ast.Attribute):
        is_own = isinstance(node.value, ast.Name) and node.value.id in {"self", "cls"}
        return int(_is_private(node.attr) and not is_own)
    if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in PRODUCT:
        return sum(_is_private(alias.name) for alias in node.names)
    return 0


def _patches(node: ast.AST) -> int:
    """Patches of a private name, and those by a dotted path, which no rename follows."""
    if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Name | ast.Attribute) or not node.args:
        return 0
    name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
    texts = [arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
    if name in {"setattr", "delattr", "patch", "object"} and texts:
        return int("." in texts[0] or _is_private(texts[0].rpartition(".")[2]))
    return 0


def _untyped(node: ast.AST) -> int:
    if not isinstance(node, ast.FunctionDef):
        return 0
    parameters = [*node.args.args, *node.args.kwonlyargs]
    return sum(isinstance(one.annotation, ast.Name) and one.annotation.id == "Any" for one in parameters if one.arg in FIXTURES)


def test_private_names_are_touched_no_more_often_than_before(repository_root: Path) -> None:
    found = sum(_touches(node) for _, node in _nodes(repository_root))
    assert found <= MAX_PRIVATE_TOUCHES, "give a time or a limit as an argument, or ask for what is public"


def test_private_names_and_dotted_paths_are_patched_no_more_often_than_before(repository_root: Path) -> None:
    found = sum(_patches(node) for _, node in _nodes(repository_root))
    assert found <= MAX_PRIVATE_OR_DOTTED_PATCHES, "give what is patched as an argument with a default"


def test_a_fixture_has_its_type_where_it_is_used(repository_root: Path) -> None:
    assert {place for place, node in _nodes(repository_root) if _untyped(node)} == set()


def test_tests_are_a_package_and_load_each_other_by_name(repository_root: Path) -> None:
    folders = {path.parent for path in (repository_root / "tests").rglob("*.py")}
    assert {folder for folder in folders if not (folder / "__init__.py").is_file()} == set()
    loads = {
        place
        for place, node in _nodes(repository_root)
        if isinstance(node, ast.Attribute) and node.attr == "spec_from_file_location"
    }
    assert loads == set()
