"""A small HTTP server for probes and figures: fixed paths, GET only, in threads of its own."""

import threading
from collections.abc import Callable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

_REQUEST_TIMEOUT_S = 10.0


class Page(NamedTuple):
    """An answer: status, content type, text."""

    status: int
    kind: str
    text: str


def health_page(text: str, *, is_good: bool, kind: str = "text/plain; charset=utf-8") -> Page:
    """The answer to a probe: 200, or 503 where it is not good."""
    return Page(HTTPStatus.OK if is_good else HTTPStatus.SERVICE_UNAVAILABLE, kind, text)


class HealthHttpServer:
    """Serves from its making until it is closed.

    Args:
        host: address to bind.
        port: 0: one that the system chooses.
        pages: path -> what gives its answer, called from any thread.

    Raises:
        OSError: the address cannot be bound.
    """

    def __init__(self, host: str, port: int, pages: Mapping[str, Callable[[], Page]]) -> None:
        handler = type("Handler", (_Handler,), {"pages": pages})
        self._server = ThreadingHTTPServer((host, port), handler)
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="health", daemon=True)
        self._thread.start()

    @property
    def port(self) -> int:
        """The port that it listens on."""
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
    pages: Mapping[str, Callable[[], Page]]
    timeout = _REQUEST_TIMEOUT_S

    def do_GET(self) -> None:
        """Answer."""
        page = self.pages.get(self.path.partition("?")[0])
        answer = page() if page else Page(HTTPStatus.NOT_FOUND, "text/plain; charset=utf-8", f"{', '.join(self.pages)}\n")
        body = answer.text.encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", answer.kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Log nothing: a probe every second is no event."""
