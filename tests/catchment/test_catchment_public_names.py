"""`import catchment`: what users type. Light alone, complete when asked, and documented."""

import subprocess
import sys
from pathlib import Path

import pytest

import catchment
from scripts import api_docs

HEAVY = (
    "numpy",
    "pyarrow",
    "polars",
    "deltalake",
    "apache_beam",
    "zarr",
    "sqlglot",
    "edge_agent",
    "pipelines",
    "schemas",
    "msgspec",
)


def test_importing_it_alone_loads_nothing_else() -> None:
    code = f"import sys, catchment, catchment.runtime; print([name for name in {HEAVY!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_a_plug_ins_names_need_no_library_of_the_core() -> None:
    code = "import sys, catchment; catchment.Source, catchment.SampleBatch, catchment.SourceError; print('numpy' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_a_name_that_needs_the_core_says_how_to_install_it_where_there_is_none() -> None:
    code = (
        "import sys\nsys.modules['numpy'] = None\nimport catchment\n"
        "try:\n    catchment.open_set\nexcept ImportError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "pip install 'catchment[core]'" in done.stdout


@pytest.mark.parametrize("name", catchment.__all__)
def test_every_public_name_is_there_and_has_a_docstring(name: str) -> None:
    value = getattr(catchment, name)
    assert value.__doc__
    assert name in dir(catchment)


def test_a_name_that_is_none_says_where_the_names_are() -> None:
    with pytest.raises(AttributeError, match=r"docs/api\.md"):
        _ = catchment.open_sesame


def test_the_page_is_written_from_the_docstrings(repository_root: Path) -> None:
    assert (repository_root / "docs/api.md").read_text() == api_docs.written(), "run: python scripts/api_docs.py"
    assert {name for _, names in api_docs.GROUPS for name in names} == set(catchment.__all__)
