"""Which source a changed one goes on from: the one that read the same thing. Pure.

A position is filed under kind, stream and all options. An option that says how something is read (its rate, a rename) may
change and leaves the position what it is; one that says what is read makes another source.
"""

from collections.abc import Collection, Sequence

import msgspec

# kind -> the options that say what is read. A plug-in's are not known: all of them say it.
WHAT_IS_READ: dict[str, tuple[str, ...]] = {
    "camera": ("source", "format"),
    "can": ("channel", "interface", "log"),
    "directory": ("path", "pattern"),
    "exec": ("command",),
    "mqtt-local": ("host", "port", "client_id"),
    "netflow": ("listen",),
    "replay": ("path",),
    "tail": ("path",),
    "zeek": ("path",),
}


def reads_the_same(name: str, other: str) -> bool:
    """Whether two sources, by their names (kind:stream:options), read the same thing into the same stream."""
    mine, its = _what(name), _what(other)
    return mine is not None and mine == its


def predecessor(name: str, known: Sequence[str], configured: Collection[str]) -> str | None:
    """The source whose position this one takes over.

    Args:
        name: of a source without a position.
        known: names that have one.
        configured: names of the sources that run: they keep theirs.
    """
    found = [other for other in known if other not in configured and reads_the_same(name, other)]
    return found[0] if len(found) == 1 else None  # two: nobody knows which was the last


def _what(name: str) -> tuple[str, str, str] | None:
    kind, _, rest = name.partition(":")
    stream, _, options = rest.partition(":")
    if kind not in WHAT_IS_READ:
        return None
    try:
        decoded = msgspec.json.decode(options, type=dict[str, object])
    except msgspec.MsgspecError:
        return None
    what = {key: decoded.get(key) for key in WHAT_IS_READ[kind]}
    return kind, stream, msgspec.json.encode(what, order="sorted").decode()
