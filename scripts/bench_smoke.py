"""Run every benchmark in its smoke mode: they must keep working, though their figures mean nothing at that size."""

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120


def main() -> int:
    """Run `bench/*.py --smoke` one after another; 1 if one of them failed."""
    benches = sorted(path for path in (ROOT / "bench").glob("bench_*.py"))
    if not benches:
        print("bench: no benchmark yet")
        return 0
    failed = []
    for bench in benches:
        began = time.monotonic()
        done = subprocess.run([sys.executable, str(bench), "--smoke"], cwd=ROOT, check=False, timeout=LIMIT_S)
        print(f"bench: {bench.name} {'ok' if done.returncode == 0 else 'FAILED'} in {time.monotonic() - began:.1f} s", flush=True)
        if done.returncode != 0:
            failed.append(bench.name)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
