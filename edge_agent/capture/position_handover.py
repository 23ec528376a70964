"""Names of sources: which one a changed source goes on from, and what they are called in status and health.

A position is filed under kind, stream and all options. An option that says how something is read (its rate, a rename) may
change and leaves the position what it is; one that says what is read (the kind's `IDENTITY`) makes another source.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Sequence

import msgspec

from edge_agent.config import SourceConfig
from edge_agent.sources.registry import identity_options

_MAX_LABEL_CHARS = 120


def reads_the_same(name: str, other: str) -> bool:
    """Whether two sources, by their names (kind:stream:options), read the same thing into the same stream."""
    kind, stream, options = _parts(name)
    other_kind, other_stream, other_options = _parts(other)
    if (kind, stream) != (other_kind, other_stream):
        return False
    identity = identity_options(kind)
    if identity is None:
        return False  # all options say what is read, and equal names are no question
    mine, its = _values(options, identity), _values(other_options, identity)
    return mine is not None and mine == its


def previous_source(name: str, known: Sequence[str], configured: Collection[str]) -> str | None:
    """The source whose position this one takes over.

    Args:
        name: of a source without a position.
        known: names that have one.
        configured: names of the sources that run: they keep theirs.
    """
    found = [other for other in known if other not in configured and reads_the_same(name, other)]
    return found[0] if len(found) == 1 else None  # two: nobody knows which was the last


def source_labels(sources: Sequence[SourceConfig]) -> dict[str, str]:
    """Source -> its label: `kind:stream`, then its own name, or what it reads where another source shares kind and stream."""
    shared = Counter(_stem(source) for source in sources)
    labels = {source.name: _label(source, is_shared=shared[_stem(source)] > 1) for source in sources}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label}#{_digest(name)}" for name, label in labels.items()}


def _parts(name: str) -> tuple[str, str, str]:
    kind, _, rest = name.partition(":")
    stream, _, options = rest.partition(":")
    return kind, stream, options


def _values(options: str, identity: tuple[str, ...]) -> bytes | None:
    try:
        values = msgspec.json.decode(options, type=dict[str, object])
    except msgspec.MsgspecError:
        return None
    return msgspec.json.encode({key: values.get(key) for key in identity}, order="sorted")


def _stem(source: SourceConfig) -> str:
    return f"{source.kind}:{source.stream}"


def _label(source: SourceConfig, *, is_shared: bool) -> str:
    if source.label:
        return f"{_stem(source)}:{source.label}"
    return f"{_stem(source)}:{_what(source)}" if is_shared else _stem(source)


def _what(source: SourceConfig) -> str:
    """The first option that says what the source reads."""
    identity = identity_options(source.kind) or ()
    found = next((value for key in identity if (value := source.options.get(key))), None)
    text = " ".join(map(str, found)) if isinstance(found, list) else str(found if found is not None else _digest(source.name))
    return text if len(text) <= _MAX_LABEL_CHARS else f"…{text[-_MAX_LABEL_CHARS:]}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=3).hexdigest()
