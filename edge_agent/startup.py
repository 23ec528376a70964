"""Start the process: load rarely used modules later, and log to a standard error that may fail.

structlog names asyncio for callers that are asynchronous, paho names urllib.request for proxies of WebSockets. Together
they are 2 MB that a small device would keep permanently. (`importlib.util.LazyLoader` loads at the second `import` before
Python 3.12.)

Standard error may be a file on a full disk, or a pipe that nobody reads any more. Neither may end a thread: an agent that
cannot log that the disk is full must drain all the same.

Stands alone because it runs before anything else is imported.
"""

import importlib
import io
import os
import sys
import types

_DESCRIPTOR = 2


class _Later(types.ModuleType):
    """Stands for a module until one of its names is asked for."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):
            raise AttributeError(name)
        if sys.modules.get(self.__name__) is self:
            del sys.modules[self.__name__]
        real = importlib.import_module(self.__name__)
        value: object = getattr(real, name)
        return value


def load_later(name: str) -> None:
    """Load a module when it is first used. One that is loaded already stays as it is."""
    if name in sys.modules:
        return
    parent, _, child = name.rpartition(".")
    stand_in = _Later(name)
    if parent:
        setattr(importlib.import_module(parent), child, stand_in)
    sys.modules[name] = stand_in


class TolerantStderr(io.TextIOBase):
    """Writes whole lines, unbuffered. What was not taken is counted, and reported with the next line that is.

    Args:
        descriptor: of the open file.
    """

    def __init__(self, descriptor: int = _DESCRIPTOR) -> None:
        self._descriptor = descriptor
        self.lost = 0

    def write(self, text: str) -> int:
        """Write a line; never raises."""
        message = f"level=warning event=log_lines_lost lines={self.lost}\n{text}" if self.lost else text
        try:
            os.write(self._descriptor, message.encode(errors="replace"))
        except OSError:
            self.lost += 1
        else:
            self.lost = 0
        return len(text)
