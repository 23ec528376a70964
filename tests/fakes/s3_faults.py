"""A proxy before an S3 server that goes wrong on purpose.

It refuses, cuts the connection before the request, cuts it after (the put is done, its answer is lost), or hangs.
"""

import http.client
import random
import threading
import time
from collections import Counter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

FAULTS = ("refuse", "cut_before", "cut_after", "hang")
REFUSAL = b"<Error><Code>SlowDown</Code><Message>no</Message></Error>"


class FaultyProxy:
    """Serves on a port of its own.

    Args:
        target_port: of the real server.
        seed: chooses the faults.
        share: how many of all requests go wrong, 0 to 1.
        hang_s: how long a hanging request hangs before it is cut.
    """

    def __init__(self, target_port: int, seed: int, share: float, hang_s: float = 1.5) -> None:
        self.share = share
        self.hang_s = hang_s
        self.done: Counter[str] = Counter()
        self._chance = random.Random(seed)
        self._lock = threading.Lock()
        self._target_port = target_port
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def handle_one(self) -> None:
                proxy.handle(self)

            do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = handle_one  # noqa: N815  # as the base class calls them

            def log_message(self, *_: Any) -> None:
                """Nothing."""

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.port = self._server.server_port
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def handle(self, request: BaseHTTPRequestHandler) -> None:
        body = request.rfile.read(int(request.headers.get("Content-Length") or 0))
        with self._lock:
            fault = self._chance.choice(FAULTS) if self._chance.random() < self.share else ""
            self.done[fault] += 1
        request.close_connection = True
        if fault == "hang":
            time.sleep(self.hang_s)
        if fault in ("hang", "cut_before"):
            return
        if fault == "refuse":
            self._answer(request, 503, [("Content-Type", "application/xml")], REFUSAL)
            return
        status, headers, answer = self._forward(request, body)
        if fault != "cut_after":
            self._answer(request, status, headers, answer)

    def _forward(self, request: BaseHTTPRequestHandler, body: bytes) -> tuple[int, list[tuple[str, str]], bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self._target_port, timeout=30)
        try:
            connection.request(request.command, request.path, body, dict(request.headers))
            response = connection.getresponse()
            return response.status, response.getheaders(), response.read()
        finally:
            connection.close()

    @staticmethod
    def _answer(request: BaseHTTPRequestHandler, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        request.send_response(status)
        for name, value in headers:
            if name.lower() not in ("content-length", "connection", "transfer-encoding", "date", "server"):
                request.send_header(name, value)
        length = next((value for name, value in headers if name.lower() == "content-length"), None)
        request.send_header("Content-Length", length if request.command == "HEAD" and length else str(len(body)))
        request.send_header("Connection", "close")
        request.end_headers()
        if request.command != "HEAD":
            request.wfile.write(body)
