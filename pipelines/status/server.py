"""`/metrics`, `/live` and `/ready` over HTTP, on the loopback unless told otherwise."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from pipelines.clock import Clock
from pipelines.config import AlarmConfig
from pipelines.errors import ConfigError, PipelineError
from pipelines.lake.lake import Lake
from pipelines.status.exposition import TEXT, exposition
from pipelines.status.health import DEFAULTS, judge
from pipelines.status.survey import survey

TIMEOUT_S = 10.0


@contextmanager
def serving(served: Lake, host: str, port: int, clock: Clock, alarms: AlarmConfig = DEFAULTS) -> Iterator[int]:
    """Serve until the block is left; the port, which is one the system chose if 0 was asked for.

    Raises:
        ConfigError: the address cannot be bound.
    """

    class Handler(_Handler):
        lake = served
        watch = clock
        limits = alarms

    try:
        server = ThreadingHTTPServer((host, port), Handler)
    except OSError as error:
        raise ConfigError(f"watch: {host}:{port} cannot be served ({error}); give another port") from error
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, name="watch", daemon=True)
    thread.start()
    try:
        yield server.server_address[1]
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    lake: Lake
    watch: Clock
    limits: AlarmConfig
    timeout = TIMEOUT_S

    def do_GET(self) -> None:
        """Answer; a lake that cannot be read is neither ready nor measured."""
        path = self.path.split("?", 1)[0]
        if path not in ("/metrics", "/live", "/ready"):
            self._send(404, "text/plain; charset=utf-8", "there is /metrics, /live and /ready\n")
            return
        try:
            found = survey(self.lake, self.watch.now_ms() * 1_000)
        except (PipelineError, OSError) as error:
            self._send(503, "application/json", json.dumps({"ok": False, "alarms": [str(error)]}))
            return
        if path == "/metrics":
            self._send(200, TEXT, exposition(found, self.limits))
            return
        verdict = judge(found, self.limits)
        good = verdict.is_alive if path == "/live" else verdict.is_ready
        self._send(200 if good else 503, "application/json", json.dumps({"ok": good, "alarms": verdict.alarms}))

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the base class names it so
        """Say nothing: a probe every second is no event."""

    def _send(self, code: int, kind: str, body: str) -> None:
        content = body.encode()
        self.send_response(code)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
