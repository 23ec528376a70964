"""`catchment label queue | import | export | agreement | resolve`: what people say, from and for labelling tools."""

import getpass
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast, get_args

import msgspec
import polars as pl
import pyarrow as pa
import typer

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, Lake, with_options
from pipelines.commands.training_set import lake_from
from pipelines.errors import NotFoundError, RefusedError
from pipelines.expressions.expression import compile_value
from pipelines.labels.agreement import agreement_of
from pipelines.labels.drawn import LabelTask
from pipelines.labels.exchange import FORMATS, LabelImport, format_of, import_labels, label_tasks
from pipelines.labels.matching import LabelOrigin
from pipelines.labels.resolve import ResolveRule, resolved_classes, votes_of
from pipelines.labels.table import KEY, SCHEMA, read_labels, task_table
from pipelines.lake import lake as lakes
from pipelines.training.sample_list import places_in_list, read_sample_list
from pipelines.training.select import expression_columns, stream_batches
from pipelines.training.thin import row_numbers

label_app = typer.Typer(help="Labels: bring them in, give samples out to be labelled.", no_args_is_help=True)
_SAMPLE_COLUMNS = (*KEY[1:], "payload_sha256", "file_name", "width", "height")
_PAYLOAD_COLUMNS = ("payload_shard", "payload_offset", "payload_length", "payload_row")

Task = Annotated[str, typer.Option("--task", help="What is labelled, as a word: the table labels/<task>.")]
Streams = Annotated[list[str], typer.Option("--from", help="Stream of the samples; may be given again.")]
Kind = Annotated[str, typer.Option("--as", help=f"Format: {', '.join(FORMATS)}.")]
Version = Annotated[int | None, typer.Option(help="Delta version of the labels; default: the newest.")]
Rule = Annotated[str, typer.Option(help=f"Which of several labels of a sample counts: {', '.join(get_args(ResolveRule))}.")]


@label_app.command("import")
def import_(  # noqa: PLR0913, PLR0917 - one argument for each option of the command
    path: Annotated[Path, typer.Argument(help="File or folder of the labelling tool.")],
    task: Task,
    stream: Streams,
    kind: Kind,
    author: Annotated[str, typer.Option(help="Who labelled, where the file does not say; default: the user.")] = "",
    role: Annotated[str, typer.Option(help="annotator, reviewer or import.")] = "annotator",
    guideline: Annotated[str, typer.Option(help="Version of the guideline that was followed.")] = "",
    partial: Annotated[bool, typer.Option("--partial", help="Leave out images without a sample instead of refusing.")] = False,
    empty_is_nothing: Annotated[
        bool, typer.Option("--empty-is-nothing", help='A picture without labels counts as "nothing here".')
    ] = False,
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Append a labelling tool's file to the table of a task; the same file twice adds nothing."""
    found = lake_from(lake, config)
    task_table(task)
    if role not in ("annotator", "reviewer", "import"):
        raise RefusedError(f"--role {role[:40]!r}: give annotator, reviewer or import")
    origin = LabelOrigin(task, author or getpass.getuser(), role, guideline, time.time_ns() // 1_000)
    samples = read_samples(found, stream, "")
    done = import_labels(found, path, kind, samples, origin, is_partial=partial, empty_is_nothing=empty_is_nothing)
    if as_json:
        say_json(msgspec.json.encode(done))
        return
    _print_import(done, path)


@dataclass(frozen=True, slots=True)
class WriteOptions:
    """The options of `label export` and `label queue`: of which samples, in which format, and where to."""

    task: Task
    stream: Streams
    kind: Kind
    output: Annotated[Path, typer.Option("-o", "--output", help="File or folder that is written.")]
    where: Annotated[str, typer.Option(help="Expression over columns and tags.")] = ""
    pictures: Annotated[bool, typer.Option("--pictures", help="Write the payloads too, into a folder images next to it.")] = False
    lake: Lake = None
    config: Config = None
    as_json: AsJson = False


@label_app.command("export")
@with_options(WriteOptions)
def export(chosen: WriteOptions, version: Version = None) -> None:
    """Write labelled samples and their labels in the form of a labelling tool."""
    found = lake_from(chosen.lake, chosen.config)
    labels, _ = read_labels(found, chosen.task, version)
    samples = read_samples(found, chosen.stream, chosen.where, pictures=chosen.pictures)
    keys = pl.DataFrame(pl.from_arrow(labels.select(list(KEY)))).unique()
    labelled = pl.DataFrame(pl.from_arrow(samples)).join(keys, on=list(KEY), how="semi", maintain_order="left").to_arrow()
    _write(found, labelled, labels, chosen)


@label_app.command("queue")
@with_options(WriteOptions)
def queue(
    options: WriteOptions,
    by: Annotated[str, typer.Option(help="Expression: the lowest first, e.g. predicted_score; default: at random.")] = "",
    rows: Annotated[int, typer.Option("-n", "--rows", min=1, help="How many samples.")] = 200,
    seed: Annotated[int, typer.Option(help="Of the random order.")] = 0,
    chosen: Annotated[
        Path | None, typer.Option("--samples", help="File of samples' names, one a line: only these, in this order.")
    ] = None,
) -> None:
    """Write samples that nobody has labelled for a task, with their ids and hashes, in the form of a labelling tool."""
    found = lake_from(options.lake, options.config)
    labels = _labels_so_far(found, options.task)
    samples = read_samples(found, options.stream, options.where, pictures=options.pictures, by=by)
    if chosen is not None:
        samples = _listed(samples, read_sample_list(chosen))
    keys = pl.DataFrame(pl.from_arrow(labels.select(list(KEY)))).unique()
    number = pl.Series("order", row_numbers(samples, seed, "label queue"))
    frame = pl.DataFrame(pl.from_arrow(samples)).with_columns(number).join(keys, on=list(KEY), how="anti")
    order = [*(["by"] if by else []), "listed" if chosen is not None else "order"]
    first = frame.sort(order, nulls_last=True).head(rows).drop("order")
    _write(found, first.to_arrow(), labels, options)


@label_app.command("agreement")
def agreement(
    task: Task, version: Version = None, rule: Rule = "latest", lake: Lake = None, config: Config = None, as_json: AsJson = False
) -> None:
    """Show how far the authors of a task agree: Krippendorff's alpha with its 95 % interval, and each author's share."""
    labels, at = read_labels(lake_from(lake, config), task, version)
    found = agreement_of(labels, _rule(rule))
    if as_json:
        say_json(msgspec.json.encode({"task": task, "version": at, "resolve": rule, **msgspec.to_builtins(found)}))
        return
    say(f"{task} at version {at}: {found.samples:,} samples with classes, {found.by_several:,} of them by several authors")
    for sentence in found.words or ("no two authors labelled the same sample, or all labels are equal: nothing to compare",):
        say(sentence)
    if found.mean_overlap is not None:
        say(f"shapes of two authors around one thing overlap by {found.mean_overlap:.3f} (IoU) on average")
    _print_losses(found.not_compared, "what was not compared")
    table = PlainTable("author", "samples", f"as {rule} says")
    for author in found.authors:
        table.add_row(author.author, f"{author.samples:,}", f"{author.same / author.samples:.1%}")
    PlainConsole().print(table)


@label_app.command("resolve")
def resolve(
    task: Task,
    rule: Rule = "latest",
    version: Version = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="CSV of sample, class, authors and agreement.")] = None,
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Give each sample of a task the one class that a rule makes of its labels; a set with this task and rule has the same."""
    labels, at = read_labels(lake_from(lake, config), task, version)
    found = pl.DataFrame(pl.from_arrow(resolved_classes(labels, _rule(rule))))
    without = len(votes_of(labels).select(KEY).unique()) - len(found)
    counts = {str(name): int(count) for name, count in found["value"].value_counts().sort("value").iter_rows()}
    if output is not None:
        sample = pl.concat_str([pl.col(name).cast(pl.String) for name in KEY], separator="/").alias("sample")
        write_atomic(output, found.select(sample, "value", "authors", "agreement").write_csv().encode(), mode=0o644)
    if as_json:
        say_json(msgspec.json.encode({"task": task, "version": at, "resolve": rule, "classes": counts, "without_class": without}))
        return
    say(f"{task} at version {at} by {rule}: {len(found):,} samples have a class, {without:,} have labels and none")
    table = PlainTable("class", "samples")
    for name, count in counts.items():
        table.add_row(name, f"{count:,}")
    PlainConsole().print(table)


def _rule(text: str) -> ResolveRule:
    for rule in get_args(ResolveRule):
        if text == rule:
            return cast("ResolveRule", text)
    raise RefusedError(f"--rule {text[:40]!r}: give {', '.join(get_args(ResolveRule))}")


class QueueWritten(msgspec.Struct, frozen=True):
    """What a queue or an export wrote. `losses`: what the format does not hold, with counts."""

    samples: int
    labels: int
    losses: dict[str, int]


def write_queue(lake: lakes.Lake, task: str, names: list[str], kind: str, output: Path, *, pictures: bool) -> QueueWritten:
    """Write samples by their names, those without a label for the task, as `label queue` does.

    Raises:
        RefusedError: none of them is left.
    """
    streams = list(dict.fromkeys(name.partition("/")[0] for name in names))
    if not streams:
        raise RefusedError("no sample fulfils this; nothing is written")
    labels = _labels_so_far(lake, task)
    frame = pl.DataFrame(pl.from_arrow(_listed(read_samples(lake, streams, "", pictures=pictures), names)))
    keys = pl.DataFrame(pl.from_arrow(labels.select(list(KEY)))).unique()
    left = frame.join(keys, on=list(KEY), how="anti").sort("listed")
    return _written(lake, left.to_arrow(), labels, kind, output, pictures=pictures)


def _labels_so_far(lake: lakes.Lake, task: str) -> pa.Table:
    try:
        return read_labels(lake, task)[0]
    except NotFoundError:
        return SCHEMA.empty_table()


def _listed(samples: pa.Table, names: Sequence[str]) -> pa.Table:
    """Those of some samples whose names are listed, with their place in the list as `listed`."""
    place = places_in_list(samples, names)
    return samples.append_column("listed", pa.array(place)).filter(pa.array(place >= 0))


def read_samples(lake: lakes.Lake, streams: list[str], where: str, *, pictures: bool = False, by: str = "") -> pa.Table:
    """Key, hash, name and size of the samples of some streams, and what `by` gives for each."""
    parts: list[pa.Table] = []
    for stream in streams:
        columns = (*_SAMPLE_COLUMNS, *(_PAYLOAD_COLUMNS if pictures else ()))
        if by:
            schema = stream_batches(lake, stream, columns).full_schema
            ordered = compile_value(by, expression_columns(schema), allow_tags="tags" in schema.names)
            columns = (*columns, *sorted(ordered.columns), *(("tags",) if "tags" in schema.names else ()))
        read = stream_batches(lake, stream, columns, where=where)
        rows = pa.Table.from_batches(read.batches, read.schema)
        if by:
            value = pl.DataFrame(pl.from_arrow(rows)).select(ordered.to_polars().alias("by")).to_arrow().column(0)
            wanted = [name for name in (*_SAMPLE_COLUMNS, *_PAYLOAD_COLUMNS) if name in rows.schema.names]
            rows = rows.select(wanted).append_column("by", value)
        parts.append(rows.append_column("stream", pa.array([stream] * len(rows), pa.string())))
    return pa.concat_tables(parts, promote_options="permissive")


def _write(lake: lakes.Lake, samples: pa.Table, labels: pa.Table, options: WriteOptions) -> None:
    done = _written(lake, samples, labels, options.kind, options.output, pictures=options.pictures)
    if options.as_json:
        say_json(msgspec.json.encode(done))
        return
    say(f"{options.output}: {done.samples:,} samples, {done.labels:,} labels")
    _print_losses(done.losses, "what the format does not hold")


def _written(lake: lakes.Lake, samples: pa.Table, labels: pa.Table, kind: str, output: Path, *, pictures: bool) -> QueueWritten:
    form = format_of(kind)
    tasks = label_tasks(samples, labels)
    if not tasks:
        raise RefusedError("no sample fulfils this; nothing is written")
    losses = form.write(output, tasks)
    if pictures:
        _write_pictures(lake, samples, tasks, (output.parent if form.suffix else output) / "images", losses)
    return QueueWritten(len(tasks), sum(len(task.labels) for task in tasks), losses)


def _write_pictures(lake: lakes.Lake, samples: pa.Table, tasks: list[LabelTask], folder: Path, losses: Counter[str]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    if "payload_shard" not in samples.schema.names:
        losses["pictures: the stream has no payload"] += len(tasks)
        return
    for row, task in zip(samples.to_pylist(), tasks, strict=True):
        if row["payload_shard"] is None:
            losses["pictures: the sample has no payload"] += 1
            continue
        place = (row["payload_shard"], row["payload_offset"], row["payload_length"], row["payload_row"] or 0)
        write_atomic(folder / task.name, lake.view().payload(*place, f"sample {task.sample}"), mode=0o644)


def _print_import(done: LabelImport, path: Path) -> None:
    say(f"{path}: {done.labels:,} labels, {done.new:,} new; images found by id {done.by_id:,}, by sha256 {done.by_sha256:,}, "
        f"by name {done.by_name:,}; without a sample {len(done.unmatched):,}, with several {len(done.ambiguous):,}")  # fmt: skip
    _print_losses(done.losses, "what the table does not get")


def _print_losses(losses: Any, title: str) -> None:
    if not losses:
        return
    table = PlainTable(title, "count")
    for reason, count in sorted(losses.items()):
        table.add_row(reason, f"{count:,}")
    PlainConsole().print(table)
