"""Beam, imported without its complaint that BigQuery's client is not installed: no command here reads BigQuery.

`import apache_beam` imports every connector it has. One of them logs a warning where the package `apitools` is missing, through
`logging.warning`, which also gives the root logger a handler. Everything of Beam that is used here is imported through here.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def _without_bigquery_warning() -> Iterator[None]:
    root = logging.getLogger()
    before = list(root.handlers)

    def is_other(record: logging.LogRecord) -> bool:
        return not record.getMessage().startswith("apitools not found")

    root.addFilter(is_other)
    try:
        yield
    finally:
        root.removeFilter(is_other)
        for handler in [one for one in root.handlers if one not in before]:
            root.removeHandler(handler)


with _without_bigquery_warning():
    import apache_beam
    from apache_beam.io.iobase import Read
    from apache_beam.options.pipeline_options import PipelineOptions
    from apache_beam.runners.common import DoFnSignature

beam: Any = apache_beam  # it ships types for some calls and none for others

__all__ = ["DoFnSignature", "PipelineOptions", "Read", "apache_beam", "beam"]
