"""An S3 server for tests: moto's, one request at a time, so that a conditional put is as atomic as on real storage.

python s3_server.py <port file>      serves until killed; every request is a line `METHOD path?query status` on standard output
"""

import os
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DEADLINE_S = 60.0
KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


@dataclass
class S3:
    """A server process with an empty bucket `lake`."""

    port: int
    log: Path

    def requests(self) -> list[list[str]]:
        return [line.split() for line in self.log.read_text().splitlines() if line[:3] in ("GET", "PUT", "HEA", "POS", "DEL")]

    def config(self, name: str, port: int | None = None, **more: Any) -> Any:
        from pipelines.config import RemoteConfig

        return RemoteConfig(f"s3://lake/{name}", f"http://127.0.0.1:{port or self.port}", **more)


@contextmanager
def served(folder: Path) -> Iterator[S3]:
    """Run a server; keys for it stand in the environment meanwhile."""
    before = {name: os.environ.get(name) for name in KEYS}
    os.environ.update(dict.fromkeys(KEYS, "test"))
    port = folder / "port"
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([sys.executable, "-W", "ignore", __file__, str(port)], stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + DEADLINE_S
        while not port.exists():
            assert process.poll() is None, (folder / "log").read_text()
            assert time.monotonic() < deadline
            time.sleep(0.05)
        server = S3(int(port.read_text()), folder / "log")
        urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{server.port}/lake", method="PUT")).close()
        yield server
    finally:
        process.kill()
        process.wait()
        for name, value in before.items():
            os.environ.pop(name)
            if value is not None:
                os.environ[name] = value


def main() -> None:
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class OneLine(WSGIRequestHandler):
        def log_request(self, code: Any = "-", size: Any = "-") -> None:
            sys.stdout.write(f"{self.command} {self.path} {code}\n")
            sys.stdout.flush()

    server = make_server("127.0.0.1", 0, DomainDispatcherApplication(create_backend_app), request_handler=OneLine)
    temporary = Path(sys.argv[1] + ".tmp")
    temporary.write_text(str(server.server_port))
    temporary.replace(sys.argv[1])
    server.serve_forever()


if __name__ == "__main__":
    main()
