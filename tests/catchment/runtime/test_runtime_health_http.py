"""The server of probes and figures."""

import urllib.error
import urllib.request
from collections.abc import Iterator

import pytest

from catchment.runtime.health_http import HealthHttpServer, health_page


@pytest.fixture
def server() -> Iterator[HealthHttpServer]:
    pages = {
        "/good": lambda: health_page("fine\n", is_good=True),
        "/bad": lambda: health_page("wörse\n", is_good=False, kind="application/json"),
    }
    with HealthHttpServer("127.0.0.1", 0, pages) as server:
        yield server


def get(server: HealthHttpServer, path: str) -> tuple[int, str, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{server.port}{path}", timeout=20) as answer:
            return answer.status, answer.headers["Content-Type"], answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.headers["Content-Type"], error.read().decode()


def test_a_good_page_is_200_and_a_bad_one_503(server: HealthHttpServer) -> None:
    assert get(server, "/good?x=1") == (200, "text/plain; charset=utf-8", "fine\n")
    assert get(server, "/bad") == (503, "application/json", "wörse\n")


def test_another_path_is_404_and_names_those_that_are_there(server: HealthHttpServer) -> None:
    assert get(server, "/secret") == (404, "text/plain; charset=utf-8", "/good, /bad\n")


def test_a_taken_port_is_an_error_at_once(server: HealthHttpServer) -> None:
    with pytest.raises(OSError, match="in use"):
        HealthHttpServer("127.0.0.1", server.port, {})


def test_after_it_is_closed_nobody_listens() -> None:
    server = HealthHttpServer("127.0.0.1", 0, {})
    server.close()
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(f"http://127.0.0.1:{server.port}/", timeout=20)
