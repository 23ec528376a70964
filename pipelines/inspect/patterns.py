"""What the text inspector counts. Patterns are for a linear-time engine: no look-around, no back references."""

from collections.abc import Mapping

from pipelines.errors import ConfigError
from schemas.inspectors import PATTERNS

__all__ = ["PATTERNS", "own_patterns"]

_OWN = "pattern_"
MAX_PATTERN_CHARS = 500


def own_patterns(options: Mapping[str, object]) -> dict[str, str]:
    """The patterns that a step's options add: `pattern_<name>: <regular expression>`.

    Raises:
        ConfigError: one is not text, or too long.
    """
    found: dict[str, str] = {}
    for key, pattern in options.items():
        if not key.startswith(_OWN):
            continue
        if not isinstance(pattern, str) or not 0 < len(pattern) <= MAX_PATTERN_CHARS:
            raise ConfigError(f"inspector text: {key} must be a regular expression of 1..{MAX_PATTERN_CHARS} characters")
        found[key.removeprefix(_OWN)] = pattern
    return found
