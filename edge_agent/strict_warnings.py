"""A library's warnings as errors, for one call: a picture that its decoder doubts is not one to judge or to redact."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOCK = threading.Lock()


@contextmanager
def as_errors() -> Iterator[None]:
    """Within it every warning is raised.

    The filters are the whole process's: two threads that came in and left crosswise would leave them changed for good, and
    then some harmless warning, anywhere, would end a thread. So one waits for the other.
    """
    with _LOCK, warnings.catch_warnings():
        warnings.simplefilter("error")
        yield
