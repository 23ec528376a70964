"""Figures as Prometheus text, format 0.0.4. Pure.

Apart from the server, so that an agent loads the server's libraries only where it serves.
"""

import math
import re
from collections.abc import Iterable, Mapping

from catchment.runtime.plain import plain, plain_lines

METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_NOT_IN_NAMES = re.compile(r"[^a-zA-Z0-9_:]")
_LARGEST_WHOLE = 2.0**53


class MetricsPage:
    """Families in the order of their first mention, each with its help once; one without a sample is left out."""

    def __init__(self) -> None:
        self._families: dict[str, tuple[list[str], list[str]]] = {}

    def add(self, name: str, meaning: str, samples: Iterable[tuple[Mapping[str, str], float]], kind: str = "gauge") -> None:
        """Add samples of a family.

        Args:
            name: the family's; a character that names may not have becomes a line, so that no name is a line of its own.
            meaning: its help, for people; that of the first mention is shown.
            samples: labels and value of each.
            kind: gauge or counter.
        """
        name = _NOT_IN_NAMES.sub("_", name)
        _, lines = self._families.setdefault(name, ([f"# HELP {name} {plain(meaning)}", f"# TYPE {name} {kind}"], []))
        lines += (f"{name}{_labels(labels)} {number_text(value)}" for labels, value in samples)

    def add_one(self, name: str, meaning: str, value: float | None, kind: str = "gauge") -> None:
        """Add a family of one sample without labels; none for None."""
        self.add(name, meaning, [] if value is None else [({}, value)], kind)

    def text(self) -> str:
        """The page."""
        return "\n".join(line for head, lines in self._families.values() if lines for line in (*head, *lines)) + "\n"


def number_text(value: float) -> str:
    """A value: whole numbers in full, others with nine digits."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if isinstance(value, int) or (value.is_integer() and abs(value) <= _LARGEST_WHOLE):
        return str(int(value))
    return f"{value:.9g}"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(label: str) -> str:
    return plain_lines(label).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
