"""Counts patterns in text, whole columns at a time, with an engine whose time is linear in the text.

Stands alone because each inspector is one module.
"""

from collections.abc import Mapping
from typing import Any

import polars as pl
import pyarrow as pa

from pipelines.errors import ConfigError
from pipelines.inspect.columns import own_patterns
from schemas.inspectors import MAX_TEXT_CHARS, PATTERNS


def compiled_patterns(options: Mapping[str, object]) -> dict[str, str]:
    """The patterns of a step by name, the ordinary ones and its own.

    Raises:
        ConfigError: the engine does not take one of them.
    """
    found = {**PATTERNS, **own_patterns(options)}
    for name, pattern in found.items():
        try:
            pl.Series([""]).str.count_matches(pattern)
        except pl.exceptions.PolarsError as error:
            raise ConfigError(f"inspector text: pattern {name} is not taken: {str(error).splitlines()[0]}") from error
    return found


def count_patterns(texts: pa.Array, patterns: Mapping[str, str]) -> dict[str, pa.Array]:
    """For each pattern, how often it occurs in each text; null for no text. Text beyond a million characters is not read."""
    raw: Any = pl.from_arrow(texts)
    column: pl.Series = raw.str.slice(0, MAX_TEXT_CHARS)
    frame = pl.DataFrame({"text": column})
    counted = frame.select(
        pl.col("text").str.count_matches(pattern).cast(pl.Int32).alias(name) for name, pattern in patterns.items()
    )
    return {f"text_{name}": counted.get_column(name).to_arrow() for name in patterns}
