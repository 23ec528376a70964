"""`/live`, `/ready` and `/metrics` on a loopback port, for whoever watches over the device."""

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self

import structlog

from edge_agent.config import HealthConfig
from edge_agent.errors import AgentError, ConfigError
from edge_agent.health.vitals import Verdict, Vitals, judge_live, judge_ready, render_metrics

_HOST = "127.0.0.1"
_REQUEST_TIMEOUT_S = 5.0
_METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_log = structlog.get_logger(__name__)


class HealthServer:
    """Serves in a thread of its own until it is closed.

    Args:
        config: where, and when to say no.
        look: takes one look at the agent; may be called from any thread.

    Raises:
        ConfigError: the port is taken.
    """

    def __init__(self, config: HealthConfig, look: Callable[[], Vitals]) -> None:
        handler = type("Handler", (_Handler,), {"config": config, "look": staticmethod(look)})
        try:
            self._server = ThreadingHTTPServer((_HOST, config.port), handler)
        except OSError as error:
            raise ConfigError(f"[health] port {config.port}: {error.strerror}; choose one that is free") from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """Where it listens."""
        return int(self._server.server_address[1])

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Handler(BaseHTTPRequestHandler):
    config: HealthConfig
    look: Callable[[], Vitals]
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer."""
        try:
            status, kind, body = self._answer()
        except AgentError as error:
            status, kind, body = HTTPStatus.SERVICE_UNAVAILABLE, "text/plain", f"{error}\n"
        encoded = body.encode()
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(encoded)))
        self.end_headers()
        self.wfile.write(encoded)

    def _answer(self) -> tuple[HTTPStatus, str, str]:
        config = self.config
        match self.path.partition("?")[0]:
            case "/live":
                return _response(judge_live(self.look(), config.stalled_after_s))
            case "/ready":
                return _response(judge_ready(self.look(), config.stalled_after_s, config.ready_within_s))
            case "/metrics":
                return HTTPStatus.OK, _METRICS_TYPE, render_metrics(self.look())
        return HTTPStatus.NOT_FOUND, "text/plain", "/live, /ready or /metrics\n"

    def log_message(self, template: str, *values: object) -> None:
        """Say it where the agent says everything."""
        _log.debug("health asked", request=template % values)


def _response(verdict: Verdict) -> tuple[HTTPStatus, str, str]:
    status = HTTPStatus.OK if verdict.is_good else HTTPStatus.SERVICE_UNAVAILABLE
    return status, "text/plain", verdict.message + "\n"
