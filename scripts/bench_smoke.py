"""Run every benchmark in its smoke mode: they must keep working, though their figures mean nothing at that size."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120


def main() -> int:
    """Run `bench/*.py --smoke` one after another; 1 if one of them failed. Those without a smoke mode are run by hand."""
    failed = []
    for bench in sorted((ROOT / "bench").glob("*.py")):
        if "--smoke" not in bench.read_text():
            print(f"bench: {bench.name} is run by hand", flush=True)
            continue
        began = time.monotonic()
        print(f"bench: {bench.name}", flush=True)
        try:
            code = subprocess.run([sys.executable, str(bench), "--smoke"], cwd=ROOT, check=False, timeout=LIMIT_S).returncode
        except subprocess.TimeoutExpired:
            code = -1
        print(f"bench: {bench.name} {'ok' if code == 0 else 'FAILED'} in {time.monotonic() - began:.1f} s", flush=True)
        if code != 0:
            failed.append(bench.name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
