"""A small HTTP server for probes and figures, and the figures as Prometheus text, format 0.0.4.

Fixed paths, GET only, in threads of its own. `MetricsPage` is pure.
"""

import math
import re
import threading
from collections.abc import Callable, Iterable, Mapping
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, NamedTuple, Self

from catchment.runtime.plain import plain, plain_lines

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_:]")
_LARGEST_WHOLE = 2.0**53


class MetricsPage:
    """Families in the order of their first mention, each with its help once; one without a sample is left out."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[list[str], list[str]]] = {}

    def add(self, name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]], kind: str = "gauge") -> None:
        """Add samples of a family.

        Args:
            name: the family's; a character that names may not have becomes a line, so that no name is a line of its own.
            meaning: its help, for people; that of the first mention is shown.
            samples: labels and value of each.
            kind: gauge or counter.
        """
        name = _NOT_IN_NAMES.sub("_", name)
        _, lines = self._families.setdefault(name, ([f"# HELP {name} {plain(meaning)}", f"# TYPE {name} {kind}"], []))
        lines += (f"{name}{_labels(labels)} {number_text(value)}" for labels, value in samples)

    def add_one(self, name: str, meaning: str, value: float | None, kind: str = "gauge") -> None:
        """Add a family of one sample without labels; none for None."""
        self.add(name, meaning, [] if value is None else [({}, value)], kind)

    def text(self) -> str:
        """The page."""
        return "\n".join(line for head, lines in self._families.values() if lines for line in (*head, *lines)) + "\n"


def number_text(value: float) -> str:
    """A value: whole numbers in full, others with nine digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if isinstance(value, int) or (value.is_integer() and abs(value) <= _LARGEST_WHOLE):
        return str(int(value))
    return f"{value:.9g}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(label: str) -> str:
    return plain_lines(label).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


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
