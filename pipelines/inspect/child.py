"""The target of the process that runs a user's function. See `catchment.runtime.worker.child`.

A request is `WANTS_ROW`, answered with `YES` or `NO`, or a sample in msgpack, answered with its columns or its error.

Stands alone because the limited process imports it and nothing more.
"""

import importlib
import importlib.machinery
import importlib.util
import inspect
from collections.abc import Callable
from typing import Any

import msgspec

WANTS_ROW, YES, NO = b"", b"y", b"n"
_MAX_REASON_CHARS = 500


class LoadError(Exception):
    """The user's code cannot be loaded, whatever it raised."""


def open_inspector(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Load the function that the options name.

    Raises:
        LoadError: it does not load.
    """
    request = msgspec.msgpack.decode(options)
    try:
        function, wants_row = _load(request["source"], request["function"], request["options"])
    except BaseException as error:
        raise LoadError(f"{type(error).__name__}: {error}") from error

    def answer(request: bytes) -> bytes:
        if request == WANTS_ROW:
            return YES if wants_row else NO
        sample = msgspec.msgpack.decode(request)
        given = {"payload": sample["payload"]} | ({"row": sample["row"]} if wants_row else {})
        try:
            return msgspec.msgpack.encode({"columns": function(**given)})
        except Exception as error:  # noqa: BLE001  # one sample's error is that sample's
            return msgspec.msgpack.encode({"error": f"{type(error).__name__}: {error}"[:_MAX_REASON_CHARS]})

    return answer


def _load(source: str, name: str, options: dict[str, Any]) -> tuple[Callable[..., Any], bool]:
    """The function, and whether it wants the row."""
    if source.endswith(".py") or "/" in source:
        loader = importlib.machinery.SourceFileLoader("inspector", source)
        spec = importlib.util.spec_from_loader("inspector", loader)
        assert spec is not None, "a loader that is given makes a spec"
        module = importlib.util.module_from_spec(spec)
        loader.exec_module(module)
    else:
        module = importlib.import_module(source)
    found: Any = getattr(module, name)
    if inspect.isclass(found):
        made: Any = found(**options)
        return made, "row" in inspect.signature(made).parameters
    return (lambda **given: found(**given, **options)), "row" in inspect.signature(found).parameters
