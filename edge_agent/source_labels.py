"""What sources are called in status and health: kind and stream, and where two share those, what tells them apart. Pure."""

import hashlib
from collections import Counter
from collections.abc import Sequence

from edge_agent.capture.position_handover import WHAT_IS_READ
from edge_agent.config import SourceConfig

_MAX_CHARS = 120


def source_labels(sources: Sequence[SourceConfig]) -> dict[str, str]:
    """Source -> its label: `kind:stream`, then its own name, or what it reads where another source shares kind and stream."""
    shared = Counter(_stem(source) for source in sources)
    labels = {source.name: _label(source, is_shared=shared[_stem(source)] > 1) for source in sources}
    times = Counter(labels.values())
    return {name: label if times[label] == 1 else f"{label}#{_digest(name)}" for name, label in labels.items()}


def _stem(source: SourceConfig) -> str:
    return f"{source.kind}:{source.stream}"


def _label(source: SourceConfig, *, is_shared: bool) -> str:
    if source.label:
        return f"{_stem(source)}:{source.label}"
    return f"{_stem(source)}:{_what(source)}" if is_shared else _stem(source)


def _what(source: SourceConfig) -> str:
    """The first option that says what the source reads."""
    found = next((value for key in WHAT_IS_READ.get(source.kind, ()) if (value := source.options.get(key))), None)
    text = " ".join(map(str, found)) if isinstance(found, list) else str(found if found is not None else _digest(source.name))
    return text if len(text) <= _MAX_CHARS else f"…{text[-_MAX_CHARS:]}"


def _digest(name: str) -> str:
    return hashlib.blake2b(name.encode(), digest_size=3).hexdigest()
