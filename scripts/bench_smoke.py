"""Run every benchmark in its smoke mode: they must keep working, though their figures mean nothing at that size."""

import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 240
AT_ONCE = 2  # half of their time is Python's start and waits, and nobody reads their figures


def smoke(bench: Path) -> bool:
    """Run one, and print what it said when it is done; whether it ended well."""
    began = time.monotonic()
    with tempfile.TemporaryFile("w+") as output:  # no pipe: what a benchmark left behind would keep it open
        try:
            command = [sys.executable, str(bench), "--smoke"]
            code = subprocess.run(command, cwd=ROOT, check=False, timeout=LIMIT_S, stdout=output, stderr=output).returncode
        except subprocess.TimeoutExpired:
            code = -1
        output.seek(0)
        printed = output.read()
    ended = "ok" if code == 0 else "FAILED"
    print(f"bench: {bench.name}\n{printed}bench: {bench.name} {ended} in {time.monotonic() - began:.1f} s", flush=True)
    return code == 0


def main() -> int:
    """Run `bench/*.py --smoke`; 1 if one of them failed. Those without a smoke mode are run by hand."""
    benches = sorted((ROOT / "bench").glob("*.py"))
    by_hand = [bench for bench in benches if "--smoke" not in bench.read_text()]
    print(f"bench: by hand: {', '.join(bench.name for bench in by_hand)}", flush=True)
    with ThreadPoolExecutor(AT_ONCE) as pool:
        return 0 if all(list(pool.map(smoke, [bench for bench in benches if bench not in by_hand]))) else 1


if __name__ == "__main__":
    sys.exit(main())
