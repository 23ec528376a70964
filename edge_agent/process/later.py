"""Modules that libraries name at their start and the agent hardly ever uses: loaded when they are first used.

structlog names asyncio for callers that are asynchronous, paho names urllib.request for proxies of WebSockets. Together
they are 2 MB that a small device would keep for ever. (`importlib.util.LazyLoader` loads at the second `import` before
Python 3.12.)
"""

import importlib
import sys
import types


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
