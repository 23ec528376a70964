"""A lake as its readers see it: streams as tables, versions, training sets. Reads only.

lake = catchment.open_lake("lake")           # or the core's configuration: open_lake("core.toml")
lake.streams()                               # ['camera_frame', 'vehicle_telemetry']
lake.rows("vehicle_telemetry", columns=["device", "speed_mps"], where="speed_mps > 30")
lake.scan("vehicle_telemetry").group_by("device").len().collect()   # Polars, lazily
lake.open_set("braking/1")
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl
import pyarrow as pa
from deltalake import DeltaTable
from deltalake.exceptions import DeltaError

from catchment.runtime.plain import html_text, plain
from pipelines.config import load_core_config
from pipelines.errors import NotFoundError, RefusedError
from pipelines.lake.lake import Lake, lake_at, lake_of
from pipelines.lake.layout import STREAMS, stream_table
from pipelines.lake.slide_rows import KEY
from pipelines.lake.table import dataset_of
from schemas.errors import SchemaError
from schemas.ids import StreamName

if TYPE_CHECKING:
    from pipelines.training.open import TrainingSet


class LakeView:
    """A lake, for reading.

    Args:
        lake: the lake.
    """

    def __init__(self, lake: Lake) -> None:
        self._lake = lake

    def streams(self) -> list[str]:
        """The streams that have rows, by name."""
        return sorted(name for name in self._lake.folders(STREAMS) if self._lake.view().table(stream_table(name)) is not None)

    def table(self, stream: str, version: int | None = None) -> DeltaTable:
        """A stream's Delta table, as it is now or as it was at a version.

        Raises:
            NotFoundError: the stream has no rows, or there is no such version.
            BadReferenceError: a file of the table is a link.
        """
        try:
            table = self._lake.view().checked_table(stream_table(_checked_name(stream)), version)
        except DeltaError as error:
            raise NotFoundError(f"stream {stream} has no version {version}: {str(error)[:200]}") from error
        if table is None:
            there = ", ".join(self.streams()) or "none"
            raise NotFoundError(f"lake {self._lake.root} has no stream {stream!r}; there are {there}")
        return table

    def scan(self, stream: str, version: int | None = None) -> pl.LazyFrame:
        """A stream's rows as a Polars LazyFrame: only the columns and rows that a query needs are read.

        Raises:
            NotFoundError: as `table`.
        """
        return pl.scan_delta(self.table(stream, version))

    def rows(self, stream: str, *, columns: Sequence[str] | None = None, where: str = "", version: int | None = None) -> pa.Table:
        """A stream's rows as an Arrow table.

        Args:
            stream: its name.
            columns: which ones; None: all. Chips also have those of their slides, as `slide_<column>`, where they are named.
            where: an expression of the policies' language; "" for all rows.
            version: of the table; None: the newest.

        Raises:
            NotFoundError: as `table`.
            RefusedError: the expression or a column is not right; the message says where.
        """
        # The language's parser is loaded only where a condition is given, and the sets' reader only here.
        from pipelines.training.select import expression_columns, policy_compiler, slides_named  # noqa: PLC0415

        dataset = dataset_of(self.table(stream, version))
        slides = slides_named(self._lake, stream, dataset.schema, (where, *(columns or ())))
        schema = slides.widened(dataset.schema) if slides is not None else dataset.schema
        unknown = sorted({*(columns or ())} - {*schema.names})
        if unknown:
            raise RefusedError(f"stream {stream} has no column {unknown[0][:80]!r}; there are {', '.join(schema.names)}")
        frame = pl.scan_pyarrow_dataset(dataset)
        if slides is not None:
            frame = frame.join(slides.scan(), on=list(KEY), how="left", maintain_order="left")
        if where.strip():
            frame = frame.filter(policy_compiler(where, expression_columns(schema)).to_polars())
        return frame.select(list(columns) if columns is not None else dataset.schema.names).collect().to_arrow()

    def open_set(self, reference: str, split: str = "train") -> "TrainingSet":
        """One split of a training set, for instance `braking/1`, or `braking` for its newest version.

        Raises:
            NotFoundError: there is no such set, version or split.
            CorruptLakeError: the manifest cannot be read.
        """
        from pipelines.training.catalogue import set_folder  # noqa: PLC0415 # readers of streams need no reader of sets
        from pipelines.training.open import open_set  # noqa: PLC0415 # likewise

        return open_set(set_folder(self._lake, reference), split)

    def sets(self) -> list[str]:
        """The training sets, as `name/version`."""
        from pipelines.training.catalogue import list_sets  # noqa: PLC0415 # readers of streams need no reader of sets

        return [f"{manifest.name}/{manifest.version}" for manifest in list_sets(self._lake)]

    def __repr__(self) -> str:
        return plain(f"<Lake {self._lake.root}: {', '.join(self.streams()) or 'no streams yet'}>")

    def _repr_html_(self) -> str:
        rows = "".join(f"<tr><td>{html_text(name)}</td></tr>" for name in self.streams())
        return f"<b>lake {html_text(str(self._lake.root))}</b><table><tr><th>stream</th></tr>{rows}</table>"


def _checked_name(stream: str) -> str:
    """A stream's name is part of a path: nothing else may be."""
    try:
        return StreamName(stream)
    except SchemaError as error:
        raise NotFoundError(f"{stream[:80]!r} is not the name of a stream: {error}") from error


def open_lake(place: str | Path) -> LakeView:
    """Open a lake for reading.

    Args:
        place: the lake's folder, or the core's TOML file, which also names a lake in a bucket.

    Raises:
        NotFoundError: there is no such folder.
        ConfigError: the TOML file is wrong.
    """
    path = Path(place)
    if path.suffix == ".toml":
        return LakeView(lake_of(load_core_config(path)))
    if not path.is_dir():
        raise NotFoundError(f"{path}: no such folder; give a lake's folder or the core's TOML file")
    return LakeView(lake_at(path))
