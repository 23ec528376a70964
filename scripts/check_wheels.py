"""Whether every locked package of the agent is there ready-made for every Python and machine it is promised for.

A Raspberry Pi has no compiler: one package without a wheel, and the agent cannot be installed. Asks the package index that
pip is configured for; downloads what it finds to a folder that is thrown away.

usage: python scripts/check_wheels.py [--python 3.11 ...] [--machine x86_64 ...]
exit code: 0 all are there; 1 some are not (each is named); 75 the index cannot be reached
"""

import argparse
import itertools
import subprocess
import sys
import tempfile
from pathlib import Path

LOCK = Path(__file__).resolve().parent.parent / "requirements-agent.lock"
PYTHONS = ("3.11", "3.12", "3.13")
MACHINES = ("x86_64", "aarch64")
# What Debian 12's and Raspberry Pi OS's C library runs.
GLIBCS = ("2_17", "2_24", "2_26", "2_27", "2_28", "2_31", "2_34", "2_35", "2_36")
EXIT_MISSING, EXIT_RETRY = 1, 75


def download(python: str, machine: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Ask pip for exactly the locked packages, as a device of that kind would."""
    platforms = [word for glibc in GLIBCS for word in ("--platform", f"manylinux_{glibc}_{machine}")]
    command = [
        *(sys.executable, "-m", "pip", "--disable-pip-version-check", "download", "--quiet", "--no-deps", "--require-hashes"),
        *("--only-binary", ":all:", "--python-version", python, "--implementation", "cp"),
        *("--platform", f"manylinux2014_{machine}", *platforms),
        *("--dest", str(folder), "-r", str(LOCK)),
    ]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def main() -> int:
    """Check all combinations asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--python", nargs="+", default=PYTHONS)
    parser.add_argument("--machine", nargs="+", default=MACHINES)
    options = parser.parse_args()
    worst = 0
    for python, machine in itertools.product(options.python, options.machine):
        with tempfile.TemporaryDirectory() as folder:
            done = download(python, machine, Path(folder))
            found = sorted(Path(folder).iterdir())
        if done.returncode == 0:
            print(f"Python {python} on {machine}: {len(found)} wheels")
        elif "onnection" in done.stderr or "timed out" in done.stderr:
            print(f"Python {python} on {machine}: the package index cannot be reached", file=sys.stderr)
            worst = max(worst, EXIT_RETRY)
        else:
            errors = "\n  ".join(line for line in done.stderr.splitlines() if line.startswith("ERROR")) or done.stderr
            print(f"Python {python} on {machine}: not all are there\n  {errors}", file=sys.stderr)
            worst = max(worst, EXIT_MISSING) if worst != EXIT_RETRY else worst
    return worst


if __name__ == "__main__":
    sys.exit(main())
