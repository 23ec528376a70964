"""The agent's package for Debian, built as `make deb` builds it, but quicker."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

PYTHON = "/usr/bin/python3"


def why_no_deb() -> str:
    """Why no package can be built here; empty if it can."""
    missing = [tool for tool in ("dpkg", "dpkg-deb", PYTHON) if shutil.which(tool) is None]
    if missing:
        return f"no {missing[0]} here: a Debian or Ubuntu with its own Python builds the package"
    if subprocess.run(
        [PYTHON, "-c", "import pip, sys; assert sys.version_info >= (3, 11)"], capture_output=True, check=False
    ).returncode:
        return "the system's Python is older than 3.11 or has no pip: apt-get install python3-pip"
    if os.geteuid() != 0:
        return "dpkg --root needs root"
    # What pip says only once is whether the index can be reached at all.
    probe = [PYTHON, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", "/dev/null/x", "msgspec"]
    errors = subprocess.run(probe, capture_output=True, text=True, check=False).stderr
    return "no package index can be reached" if "No matching distribution" in errors or "connection" in errors.lower() else ""


def build_deb(root: Path, folder: Path) -> tuple[Path, Path]:
    """The package and the wheel that it was made of, both in `folder`."""
    _run(sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder), str(root))
    (wheel,) = folder.glob("*.whl")
    environment = {**os.environ, "WHEEL": str(wheel), "PYTHON": PYTHON, "COMPRESSION": "-Zgzip -z1"}
    environment.pop("PYTHONPATH", None)
    output = _run(str(root / "deploy/edge/build-deb.sh"), str(folder), environment=environment)
    return Path(output.strip()), wheel


def _run(*command: str, environment: dict[str, str] | None = None) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout
