"""The shim, built once per machine and process tree."""

import functools
import hashlib
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.c")
COMPILER_MISSING = "no C compiler (cc) to build the shim with; install gcc and libc6-dev"


def compiler() -> str | None:
    return shutil.which("cc") or shutil.which("gcc")


@functools.cache
def preload() -> Path:
    """The shared object for LD_PRELOAD."""
    cc = compiler()
    if cc is None:
        raise RuntimeError(COMPILER_MISSING)
    text = SOURCE.read_bytes()
    built = Path(tempfile.gettempdir()) / f"catchment-shim-{os.getuid()}-{hashlib.sha256(text).hexdigest()[:16]}.so"
    if not built.exists():
        temporary = built.with_suffix(f".{os.getpid()}.tmp")
        subprocess.run([cc, "-shared", "-fPIC", "-O2", "-o", str(temporary), str(SOURCE), "-ldl", "-lpthread"], check=True)
        temporary.replace(built)
    return built
