"""JSON as programs write it: strict first, then with the NaN and Infinity that Python's own module prints. Pure."""

import msgspec

_LOOSE = ("NaN", "Infinity")


def read_json(text: str) -> object:
    """What a JSON text says.

    Raises:
        msgspec.MsgspecError: it is none, or says what cannot be written as UTF-8.
        RecursionError: it is nested too deeply.
    """
    try:
        return msgspec.json.decode(text)
    except msgspec.MsgspecError:
        if not any(word in text for word in _LOOSE):
            raise
        found = _loosely(text)
        if found is None:
            raise
        return found


def _loosely(text: str) -> object:
    import json  # noqa: PLC0415 # loaded only where a program writes such

    try:
        found = json.loads(text)
        msgspec.json.encode(found)  # half of a surrogate pair is no text that could be stored
    except ValueError:
        return None
    return found
