"""`catchment similar | rare | uncertain | disagreeing`: which samples to look at, label or train on next."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Self

import msgspec
import polars as pl
import pyarrow as pa
import typer

from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands import label as labels
from pipelines.commands.options import AsJson, Config, Lake, with_options
from pipelines.commands.policy_lake import LakeSite
from pipelines.contracts.arrow import private_columns
from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.resolve import resolved_classes
from pipelines.labels.table import read_labels
from pipelines.mining import picks
from pipelines.mining.index import EmbeddingIndex, IndexState
from pipelines.mining.key_index import KeyIndex
from pipelines.mining.rows import KEY, RowFilter, StreamRows
from pipelines.mining.vectors import embedding_column
from pipelines.policy.contact_sheet import Sheet
from pipelines.policy.preview import ExampleRow
from pipelines.training.sample_list import write_sample_list

Column = Annotated[str, typer.Option(help="The embedding column; default: the only one that ends with _embedding.")]
_MAX_SHEET = 1_000


@dataclass(frozen=True, slots=True)
class PickOptions:
    """The options of all these commands: which samples, and where they go besides the terminal."""

    stream: Annotated[str, typer.Option("--from", help="The stream.")]
    where: Annotated[str, typer.Option(help="Only rows for which this expression over columns and tags is true.")] = ""
    count: Annotated[int, typer.Option("-n", "--rows", min=1, max=100_000, help="How many samples.")] = 20
    sheet: Annotated[Path | None, typer.Option(help="Write the samples as a contact sheet: .html or .png.")] = None
    ids: Annotated[Path | None, typer.Option(help="Write the samples' names, one a line: for set specs and queues.")] = None
    queue: Annotated[str, typer.Option(help="Write those not labelled yet for this task as a label queue (--as, -o).")] = ""
    kind: Annotated[str, typer.Option("--as", help="With --queue: format of the labelling tool.")] = "coco"
    output: Annotated[Path | None, typer.Option("-o", "--output", help="With --queue: file or folder that is written.")] = None
    pictures: Annotated[bool, typer.Option("--pictures", help="With --queue: write the payloads too.")] = False
    lake: Lake = None
    config: Config = None
    as_json: AsJson = False

    def __post_init__(self) -> None:
        if bool(self.queue) != (self.output is not None):
            raise RefusedError("a label queue needs both --queue TASK and -o FILE")
        if self.sheet is not None and self.sheet.suffix not in (".html", ".png"):
            raise RefusedError(f"{self.sheet}: a contact sheet is .html or .png")


@dataclass(frozen=True, slots=True)
class MiningSite:
    """The rows that a command picks from."""

    site: LakeSite
    rows: StreamRows
    only: RowFilter
    private: frozenset[str]

    @classmethod
    def open(cls, chosen: PickOptions) -> Self:
        """Open a stream; with a queue, what has a label for its task already is not picked."""
        stream, task = chosen.stream, chosen.queue
        site = LakeSite.open(chosen.config, chosen.lake)
        rows = StreamRows(site.lake, stream)
        contract = site.contracts.get(stream, None)
        private = frozenset() if contract is None else private_columns(contract)
        without = None
        if task:
            try:
                table, _ = read_labels(site.lake, task)
                without = pl.DataFrame(pl.from_arrow(table)).filter(pl.col("stream") == stream).select(list(KEY)).unique()
            except NotFoundError:
                without = None
        return cls(site, rows, RowFilter(rows, chosen.where, without), private)


class PickList(msgspec.Struct, frozen=True):
    """What `--json` prints. `score` says what the samples' scores are; `queued` how many went into a label queue."""

    stream: str
    version: int
    score: str
    samples: list[picks.Pick]
    index: IndexState | None
    queued: int | None


@with_options(PickOptions)
def similar(
    samples: Annotated[list[str], typer.Argument(metavar="SAMPLE...", help="device/epoch/seq; of several, any may be alike.")],
    chosen: PickOptions,
    column: Column = "",
    exact: Annotated[bool, typer.Option("--exact", help="Compare with every vector, not the nearest lists alone.")] = False,
) -> None:
    """Samples most like one or several given ones, by their embeddings."""
    found = MiningSite.open(chosen)
    index, keys, state = _indexes(found.rows, embedding_column(found.rows.schema, column))
    picked = picks.similar(index, keys, samples, chosen.count, found.only, is_exact=exact)
    _finish(found, picked, chosen, f"like {', '.join(samples)[:120]}", index=state)


@with_options(PickOptions)
def rare(
    chosen: PickOptions,
    column: Column = "",
    seed: Annotated[int, typer.Option(help="Of the sample of rows that all are compared with.")] = 0,
    references: Annotated[
        int, typer.Option(min=1, max=100_000, help="Rows that all are compared with: fewer find coarser oddities.")
    ] = picks.REFERENCES,
) -> None:
    """Samples least like the rest of the stream, by their embeddings."""
    found = MiningSite.open(chosen)
    index, keys, state = _indexes(found.rows, embedding_column(found.rows.schema, column))
    picked = picks.rare(found.rows, index, keys, chosen.count, found.only, seed=seed, references=references)
    _finish(found, picked, chosen, "rare", index=state)


@with_options(PickOptions)
def uncertain(
    chosen: PickOptions,
    score: Annotated[list[str] | None, typer.Option(help="Column of scores or margins from 0 to 1; may be given again.")] = None,
) -> None:
    """Samples of which a model is least sure, by its scores or margins."""
    found = MiningSite.open(chosen)
    _finish(found, picks.uncertain(found.rows, tuple(score or ()), chosen.count, found.only), chosen, "uncertain")


@with_options(PickOptions)
def disagreeing(
    chosen: PickOptions,
    between: Annotated[str, typer.Option(help="Label columns, by comma; default: all that end with _label.")] = "",
    task: Annotated[str, typer.Option(help="Compare with the labels of people for this task.")] = "",
) -> None:
    """Samples on which two models, or a model and people, disagree: the surest first."""
    found = MiningSite.open(chosen)
    columns = tuple(part.strip() for part in between.split(",") if part.strip())
    picked = picks.disagreeing(found.rows, columns, chosen.count, found.only, _classes(found, task) if task else None)
    _finish(found, picked, chosen, "disagreeing")


def _indexes(rows: StreamRows, column: str) -> tuple[EmbeddingIndex, KeyIndex, IndexState]:
    """The vectors and the keys of a stream's live files; what has left the lake leaves them, too."""
    index, keys = EmbeddingIndex(rows, column), KeyIndex(rows)
    state = index.sync()
    keys.sync()
    return index, keys, state


def _classes(found: MiningSite, task: str) -> pl.DataFrame:
    """Key and class of what people labelled for a task."""
    table, _ = read_labels(found.site.lake, task)
    resolved = pl.DataFrame(pl.from_arrow(resolved_classes(table)))
    return resolved.filter(pl.col("stream") == found.rows.stream).select(*KEY, pl.col("value").alias("class"))


def _finish(
    found: MiningSite, picked: picks.Picked, options: PickOptions, title: str, *, index: IndexState | None = None
) -> None:
    """Print the picks and write them where they are wanted."""
    chosen, table = picks.describe(found.rows, picked, found.private)
    names = [pick.sample for pick in chosen]
    if options.sheet is not None:
        rows = [
            ExampleRow({"sample": pick.sample, picked.score_name: f"{pick.score:.4f}", **pick.facts, **row}, ())
            for pick, row in zip(chosen[:_MAX_SHEET], _payload_places(table.slice(0, _MAX_SHEET)), strict=True)
        ]
        Sheet(found.site.lake, f"{title}: {found.rows.stream}", rows).write(options.sheet)
    if options.ids is not None:
        write_sample_list(options.ids, names)
    queued = None
    if options.queue and options.output is not None:
        task, kind, output = options.queue, options.kind, options.output
        queued = labels.write_queue(found.site.lake, task, names, kind, output, pictures=options.pictures).samples
    if options.as_json:
        say_json(msgspec.json.encode(PickList(found.rows.stream, found.rows.version, picked.score_name, chosen, index, queued)))
        return
    _print(chosen, picked, f"{title}: {found.rows.stream} at version {found.rows.version}")
    if index is not None and (index.built or index.removed):
        say(f"index: {index.built:,} of {index.segments:,} files indexed again, {index.removed:,} old ones removed; "
            f"{index.vectors:,} vectors, {index.without:,} rows without", err=True)  # fmt: skip
    if queued is not None:
        say(f"{options.output}: {queued:,} samples to label", err=True)


def _payload_places(table: pa.Table) -> list[dict[str, object]]:
    hidden = [name for name in table.schema.names if name.startswith("payload_") or name in KEY]
    places: list[dict[str, object]] = table.select(hidden).to_pylist()
    return places


def _print(chosen: list[picks.Pick], picked: picks.Picked, title: str) -> None:
    if not chosen:
        say("no sample fulfils this", err=True)
        return
    columns = list(dict.fromkeys(name for pick in chosen for name in pick.facts))
    table = PlainTable("sample", picked.score_name, *columns, title=title)
    for pick in chosen:
        table.add_row(pick.sample, f"{pick.score:.4f}", *(pick.facts.get(name, "") for name in columns))
    PlainConsole().print(table)
