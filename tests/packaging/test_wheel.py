"""What is shipped: exactly four packages, and an agent that runs without the core's libraries."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

PACKAGES = {"catchment", "edge_agent", "pipelines", "schemas"}
# What the core and the extras bring; the bare install has none of it.
CORE_LIBRARIES = (
    *("numpy", "pyarrow", "apache_beam", "polars", "deltalake", "duckdb", "yaml", "zarr", "zarrs", "dask", "distributed"),
    *("sqlglot", "tifffile", "imagecodecs", "pyvips", "PIL", "onnxruntime", "onnx", "sklearn", "skl2onnx", "pandas"),
    *("pydantic", "open_data_contract_standard", "torch", "fastapi", "uvicorn", "hypothesis", "pytest", "psutil"),
    *("cryptography", "av", "obstore", "can", "cantools", "asammdf", "google_crc32c", "faiss", "shapely"),
)
# Modules that only an extra can import, loaded when a model is configured; named here so that the list cannot grow unseen.
NEEDS_AN_EXTRA = {
    "edge_agent.sources.camera.cameras",
    "edge_agent.sources.can.frames",
    "edge_agent.sources.can.decoder",
    "edge_agent.models.answers",
    "edge_agent.models.device_probe",
    "edge_agent.models.inference",
    "edge_agent.models.picture_input",
    "edge_agent.pictures.statistics",
    "edge_agent.pictures.hiding",
}

BLOCKER = """
import sys, importlib
blocked = set(sys.argv[1].split(","))
class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(f"{name} is not part of the bare install", name=name)
sys.meta_path.insert(0, Blocker())
for module in sys.argv[2].split(","):
    importlib.import_module(module)
print("imported", len(sys.argv[2].split(",")))
"""


@pytest.fixture(scope="module")
def wheel(repository_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(repository_root)],
        check=True,
        capture_output=True,
    )
    (built,) = folder.glob("*.whl")
    return built


def _modules(root: Path, package: str) -> list[str]:
    found = []
    for path in sorted((root / package).rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found.append(".".join(parts[:-1] if parts[-1] == "__init__" else parts))
    return [name for name in found if not name.endswith("__main__")]


def test_the_wheel_ships_exactly_three_packages(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        tops = {name.split("/")[0] for name in archive.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == PACKAGES


def test_the_wheel_ships_every_module_and_every_contract_of_the_checkout(wheel: Path, repository_root: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        shipped = set(archive.namelist())
    expected = {
        str(path.relative_to(repository_root))
        for package in PACKAGES
        for pattern in ("*.py", "*.json", "*.yaml", "py.typed")
        for path in (repository_root / package).rglob(pattern)
    }
    assert any(name.startswith("schemas/contracts/") and name.endswith(".json") for name in expected)
    assert sorted(expected - shipped) == []


def test_the_wheel_offers_the_two_commands(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        (entry,) = [name for name in archive.namelist() if name.endswith(".dist-info/entry_points.txt")]
        text = archive.read(entry).decode()
    assert "edge-agent = edge_agent.cli:main" in text
    assert "catchment = pipelines.cli:main" in text


def test_every_module_of_the_agent_imports_without_the_core_libraries(repository_root: Path, tmp_path: Path) -> None:
    modules = [name for name in _modules(repository_root, "edge_agent") if name not in NEEDS_AN_EXTRA]
    modules += _modules(repository_root, "schemas")
    done = subprocess.run(
        [sys.executable, "-c", BLOCKER, ",".join((*CORE_LIBRARIES, "pipelines")), ",".join(modules)],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == ["imported", str(len(modules))]


def test_the_blocked_libraries_cover_every_extra(repository_root: Path) -> None:
    """A library added to an extra must be blocked above, or the bare install could come to need it unseen."""
    project = tomllib.loads((repository_root / "pyproject.toml").read_text())["project"]
    imports = {"apache-beam": "apache_beam", "pyyaml": "yaml", "pillow": "PIL", "scikit-learn": "sklearn", "python-can": "can"}
    imports |= {"faiss-cpu": "faiss"}
    extras = project["optional-dependencies"]
    names = {
        requirement.split("[")[0].split(">")[0].split("<")[0].split("=")[0].strip()
        for extra, requirements in extras.items()
        if extra != "dev"
        for requirement in requirements
    }
    roots = {imports.get(name, name.replace("-", "_")) for name in names}
    assert sorted(roots - set(CORE_LIBRARIES)) == []
