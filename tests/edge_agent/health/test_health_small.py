"""The agent's process stays small: what it hardly ever uses is not loaded, and works all the same when it is used."""

import subprocess
import sys

PROGRAM = """
import sys, edge_agent.__main__
big = ("asyncio.events", "http.server", "http.client", "cryptography", "rich.console", "typer", "numpy", "pyarrow")
assert not [name for name in big if name in sys.modules], [name for name in big if name in sys.modules]
import asyncio, urllib.request
async def three():
    return 3
assert asyncio.run(three()) == 3
assert urllib.request.Request("http://127.0.0.1/").host == "127.0.0.1"
"""


def test_what_is_seldom_used_is_loaded_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
