"""What the text inspector counts. Patterns are for a linear-time engine: no look-around, no back references."""

from collections.abc import Mapping

from pipelines.errors import ConfigError

# Counted in every text; each is written so that ordinary log lines do not match by accident.
PATTERNS: Mapping[str, str] = {
    "emails": r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}",
    "ipv4s": r"\b(?:(?:25[0-5]|2[0-4]\d|1?\d?\d)\.){3}(?:25[0-5]|2[0-4]\d|1?\d?\d)\b",
    "macs": r"\b(?:[0-9A-Fa-f]{2}[:-]){5}[0-9A-Fa-f]{2}\b",
    "phones": r"(?:\+|\b00)[1-9]\d{0,2}(?:[ ./-]?\d{2,4}){2,4}\b",
    "ibans": r"\b[A-Z]{2}\d{2}(?: ?[A-Z0-9]{4}){3,7}(?: ?[A-Z0-9]{1,3})?\b",
    "cards": r"\b(?:4\d{3}|5[1-5]\d{2}|3[47]\d{2}|6011)(?:[ -]?\d{4}){2}[ -]?\d{3,4}\b",
    "users": r"(?i)\b(?:user(?:name)?|login|uid)[=: ]+[\"']?[a-z_][a-z0-9._-]{1,63}",
    "secrets": r"(?i)\b(?:password|passwd|secret|token|api[_-]?key)[=:][ \"']?[^\s\"',;]{4,}",
}
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
