"""Commands that print a result print nothing else: what sources log meanwhile is in that result."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

import structlog


@contextmanager
def quiet_log() -> Iterator[None]:
    """Log nothing while this lasts."""
    before = structlog.get_config()
    structlog.configure(processors=[_drop])
    try:
        yield
    finally:
        structlog.configure(**before)


def _drop(*_: object) -> NoReturn:
    raise structlog.DropEvent
