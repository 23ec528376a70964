"""`catchment set`: build, list, show and verify training sets."""

import json
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from catchment.runtime.output import say, say_document, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands import array_options as arrays
from pipelines.commands.options import AsJson, Config, Lake, with_options
from pipelines.config import load_core_config, require_folder
from pipelines.errors import RefusedError
from pipelines.lake import lake as lakes
from pipelines.lake.lake import lake_at, lake_of
from pipelines.runners.engine import Engine, RunnerKind
from pipelines.training.bucket_sets import bring_set
from pipelines.training.build import DEFAULT_SPLIT, BuildOptions, SetDraft, draft_set, terms_of, wish_of, wish_of_spec, write_set
from pipelines.training.building.plan import SetPlan
from pipelines.training.building.recipe import Wish
from pipelines.training.building.versions import Terms, build_version, planned
from pipelines.training.catalogue import list_sets, set_folder
from pipelines.training.manifest import MANIFEST_NAME, ClassCount, LeftOut, Manifest, Source, load_manifest
from pipelines.training.open import open_set
from pipelines.training.shards import Progress
from pipelines.training.spec import parse_duration_s
from pipelines.training.spec_file import load_spec, schema_text

_BESIDE_SPEC = frozenset({"name", "allow_missing", "reassign", "runner", "workers", "beam_options", "lake", "config", "as_json"})
_MAX_CLASSES_SHOWN = 60
_NEIGHBOUR_S = 2.0
set_app = typer.Typer(help="Training sets: build one, list them, look at one, check one.", no_args_is_help=True)


SetName = Annotated[str, typer.Argument(metavar="NAME|SPEC", help="Name of the set, or the YAML file of its spec.")]
AllowMissing = Annotated[bool, typer.Option("--allow-missing", help="Build although a split lacks a class.")]
Runner = Annotated[str, typer.Option(help="direct | dask | portable | prism | flink | spark | dataflow.")]
Workers = Annotated[int, typer.Option(min=0, help="Processes on this machine that build (a local Dask cluster).")]
BeamOptions = Annotated[list[str] | None, typer.Argument(help="After --: Beam's own options, as Beam takes them.")]


@dataclass(frozen=True, slots=True)
class DraftOptions:
    """The options of `set plan` and `set build`: which rows, how they are split, and what is kept of them."""

    stream: Annotated[list[str] | None, typer.Option("--from", help="Stream to select from; may be given again.")] = None
    where: Annotated[str, typer.Option(help="Expression over columns and tags, e.g. \"has('dark') AND speed > 30\".")] = ""
    split: Annotated[str, typer.Option(help="Shares, e.g. train=0.8,test=0.2.")] = ""
    group: Annotated[str, typer.Option(help="Columns whose equal values stay in one split.")] = "device"
    stratify: Annotated[
        str, typer.Option(help="Columns of classes, by comma: each must be in every split. Default: balance tags.")
    ] = ""
    block: Annotated[str, typer.Option(help="Split by blocks of event time within each group, e.g. 30s, 5min, 1h.")] = ""
    gap: Annotated[str, typer.Option(help="Leave out rows nearer than this to a row of another split.")] = ""
    reassign: Annotated[
        bool, typer.Option("--reassign", help="Place all groups again; else a group keeps its split permanently.")
    ] = False
    columns: Annotated[str, typer.Option(help="Columns to keep, by comma; all if empty.")] = ""
    with_payload: Annotated[bool | None, typer.Option("--with-payload/--tabular", help="Default: where there is one.")] = None
    seed: Annotated[int, typer.Option(help="Of split and shuffle.")] = 0
    lake: Lake = None
    config: Config = None
    as_json: AsJson = False

    @property
    def streams(self) -> tuple[str, ...]:
        """The streams to select from."""
        return tuple(self.stream or ())

    def build_options(self, typed: arrays.ArrayOptions) -> BuildOptions:
        """How the set is built by these options.

        Raises:
            RefusedError: an option is not of its form, or the options do not fit one another.
        """
        return BuildOptions(
            split=parse_split(self.split),
            group=tuple(self.group.split(",")),
            stratify=_listed(self.stratify),
            block_s=parse_duration_s(self.block),
            gap_s=parse_duration_s(self.gap),
            reassign=self.reassign,
            with_payload=self.with_payload,
            arrays=arrays.array_rule(typed, _listed(self.columns)),
        )


@set_app.command("plan")
@with_options(DraftOptions, arrays.ArrayOptions)
def plan(context: typer.Context, name: SetName, chosen: DraftOptions, typed: arrays.ArrayOptions) -> None:
    """Show what a build would give: rows and classes of each split. Writes nothing."""
    options = chosen.build_options(typed)
    found = lake_from(chosen.lake, chosen.config)
    if not _is_spec(name) and options.arrays is not None:
        draft = draft_set(found, name, chosen.streams, chosen.where, seed=chosen.seed, options=options, with_values=False)
        _show_plan(draft, as_json=chosen.as_json)
        return
    wish, terms = _wish_and_terms(context, name, chosen, options)
    with planned(found, wish, terms) as plan:
        _show_plan(plan, as_json=chosen.as_json)


@contextmanager
def _opened(engine: Engine) -> Iterator[Engine]:
    """The engine with its cluster; this process needs none, and no Beam for a small set."""
    if engine.kind is RunnerKind.DIRECT:
        yield engine
        return
    from pipelines.runners.run import opened  # noqa: PLC0415  # slow to import

    with opened(engine) as found:
        yield found


def _wish_and_terms(context: typer.Context, name: str, chosen: DraftOptions, options: BuildOptions) -> tuple[Wish, Terms]:
    """What a person wishes for, by a spec or by options."""
    if not _is_spec(name):
        return wish_of(name, chosen.streams, chosen.where, chosen.seed, options), terms_of(options)
    _refuse_beside_spec(context)
    spec = load_spec(Path(name))
    return wish_of_spec(spec), terms_of(replace(options, stratify=spec.split.stratify))


def _show_plan(draft: SetDraft | SetPlan, *, as_json: bool) -> None:
    facts = PlanFacts(
        draft.split_rows, draft.coverage, draft.left_out, draft.notes, draft.sources, draft.neighbours(_NEIGHBOUR_S)
    )
    if as_json:
        say_json(msgspec.json.encode(facts))
        return
    PlainConsole().print(_coverage_table(draft))
    for source in draft.sources:
        say(f"from: {source.stream} at {source.version_words}: {source.rows:,} rows")
    for split_name, rows in facts.neighbours.items():
        say(f"leak: {rows:,} rows of {split_name} have a neighbour of another split within {_NEIGHBOUR_S:g} s")
    for part in draft.left_out:
        say(f"left out: {part.rows:,} rows: {part.reason}")
    for note in draft.notes:
        _note(note)


@set_app.command("build")
@with_options(DraftOptions, arrays.ArrayOptions)
def build(
    context: typer.Context,
    name: SetName,
    chosen: DraftOptions,
    typed: arrays.ArrayOptions,
    allow_missing: AllowMissing = False,
    runner: Runner = "",
    workers: Workers = 0,
    beam_options: BeamOptions = None,
) -> None:
    """Build the next version of a training set. Kill it at any time: the same command goes on."""
    options = replace(chosen.build_options(typed), allow_missing=allow_missing, columns=_listed(chosen.columns) or None)
    found = lake_from(chosen.lake, chosen.config)
    engine = Engine(runner or ("dask" if workers else "direct"), tuple(beam_options or ()), workers)
    with _Bar() as bar, _opened(engine) as opened_engine:
        options = replace(options, engine=opened_engine)
        if not _is_spec(name) and options.arrays is not None:
            draft = draft_set(found, name, chosen.streams, chosen.where, seed=chosen.seed, options=options)
            _print_coverage(draft)
            manifest = write_set(found, draft, options, progress=bar)
        else:
            wish, terms = _wish_and_terms(context, name, chosen, options)
            manifest = build_version(found, wish, terms, progress=bar, notice=_print_coverage)
    _print_manifest(manifest, found.root / "sets" / manifest.name / str(manifest.version), chosen.as_json)
    for note in manifest.notes:
        _note(note)


@set_app.command("schema")
def schema() -> None:
    """Print the JSON Schema of set specs, for editors."""
    say_document(schema_text().removesuffix("\n"))


@set_app.command("ls")
def ls(lake: Lake = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the sets of the lake."""
    sets = list_sets(lake_from(lake, config))
    if as_json:
        rows = [{"name": m.name, "version": m.version, "rows": m.rows, "bytes": m.bytes, "splits": m.split_rows()} for m in sets]
        say_json(json.dumps(rows))
        return
    table = PlainTable("set", "version", "rows", "bytes", "splits", "where")
    for found in sets:
        shares = " ".join(f"{split}={rows:,}" for split, rows in found.split_rows().items())
        table.add_row(found.name, str(found.version), f"{found.rows:,}", f"{found.bytes:,}", shares, found.where or "-")
    PlainConsole().print(table)


@set_app.command("show")
def show(
    reference: Annotated[str, typer.Argument(help="name, or name/version.")],
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show one set: where it came from and what it holds."""
    folder = set_folder(lake_from(lake, config), reference)
    manifest = load_manifest(folder / MANIFEST_NAME)
    _print_manifest(manifest, folder, as_json)


@set_app.command("verify")
def verify(
    reference: Annotated[str, typer.Argument(help="name, or name/version.")],
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Hash every file of a set against its manifest; from a lake in a bucket, bring them here first."""
    found = lake_from(lake, config)
    folder = set_folder(found, reference)
    manifest = load_manifest(folder / MANIFEST_NAME)
    bring_set(found, folder, manifest)
    checked = sum(open_set(folder, split).verify() for split in manifest.split_rows())
    if as_json:
        say_json(json.dumps({"name": manifest.name, "version": manifest.version, "bytes": checked}))
        return
    say(f"{manifest.name} {manifest.version}: {checked:,} bytes are what the manifest tells")


def parse_split(text: str) -> dict[str, float]:
    """Read `train=0.8,test=0.2`.

    Raises:
        RefusedError: not of that form.
    """
    if not text:
        return dict(DEFAULT_SPLIT)
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.partition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError as error:
            raise RefusedError(f"--split {text!r}: give shares like train=0.8,test=0.2") from error
    return shares


def _is_spec(name: str) -> bool:
    return name.endswith((".yaml", ".yml"))


def _is_typed(context: typer.Context, parameter: str) -> bool:
    source = context.get_parameter_source(parameter)
    return source is not None and source.name == "COMMANDLINE"


def _refuse_beside_spec(context: typer.Context) -> None:
    """A spec says it all: what an option would change is changed in the file, where it is reviewed.

    Raises:
        RefusedError: an option was given that the spec decides.
    """
    given = [
        parameter.opts[0]
        for parameter in context.command.params
        if parameter.name not in _BESIDE_SPEC and _is_typed(context, str(parameter.name))
    ]
    if given:
        raise RefusedError(f"{', '.join(given)}: a set spec decides this; change it in the file")


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _print_coverage(draft: SetDraft | SetPlan) -> None:
    PlainConsole(stderr=True).print(_coverage_table(draft))


def _coverage_table(draft: SetDraft | SetPlan) -> PlainTable:
    """Classes by splits, with the rows of each; a class that a split lacks stands as 0."""
    names = [split for split, _ in draft.rule.fractions]
    table = PlainTable("class", *names, title="rows by class and split")
    table.add_row("rows", *(f"{rows:,}" for rows in draft.split_rows.values()))
    by_class: dict[str, list[str]] = {}
    for count in draft.coverage:
        by_class.setdefault(count.name, []).append(f"{count.rows:,}")
    for name, cells in list(by_class.items())[:_MAX_CLASSES_SHOWN]:
        table.add_row(name, *cells)
    if len(by_class) > _MAX_CLASSES_SHOWN:
        table.add_row(f"... {len(by_class) - _MAX_CLASSES_SHOWN:,} more (--json shows all)", *("" for _ in names))
    return table


class PlanFacts(msgspec.Struct, frozen=True):
    """What `set plan --json` prints."""

    splits: Mapping[str, int]
    coverage: tuple[ClassCount, ...]
    left_out: tuple[LeftOut, ...]
    notes: tuple[str, ...]
    sources: tuple[Source, ...]
    neighbours: dict[str, int]


def lake_from(lake: Path | None, config: Path | None) -> lakes.Lake:
    """The lake that `--lake` names, else the configured one."""
    if lake is None:
        return lake_of(load_core_config(config))
    require_folder(lake)
    return lake_at(lake)


def _print_manifest(manifest: Manifest, folder: Path, as_json: bool) -> None:
    if as_json:
        say_json(msgspec.json.encode(manifest))
        return
    table = PlainTable(f"{manifest.name} {manifest.version}", str(folder), show_header=True)
    table.add_row("where", manifest.where or "all rows")
    for source in manifest.sources:
        table.add_row("from", f"{source.stream} at {source.version_words}: {source.rows:,} rows")
    for split, rows in manifest.split_rows().items():
        table.add_row(split, f"{rows:,} rows")
    for count in manifest.tags:
        table.add_row(f"tag {count.tag}", f"{count.split}: {count.rows:,} rows")
    for part in manifest.left_out:
        table.add_row("left out", f"{part.rows:,} rows: {part.reason}")
    table.add_row("policies", ", ".join(manifest.policies) or "none")
    table.add_row("columns", ", ".join(column.name for column in manifest.columns))
    for array in manifest.arrays.arrays if manifest.arrays else ():
        table.add_row(f"array {array.path}", f"{array.dtype} {' x '.join(f'{side:,}' for side in array.shape)}")
    table.add_row("bytes", f"{manifest.bytes:,}")
    PlainConsole().print(table)


def _note(text: str) -> None:
    PlainConsole(stderr=True).print(text, style="yellow")


class _Bar(Progress):
    """A bar on a terminal; nothing where the output is kept."""

    def __init__(self) -> None:
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._rich = RichProgress(*columns, console=PlainConsole(stderr=True), transient=True, disable=not sys.stderr.isatty())
        self._task = self._rich.add_task("samples", total=None)

    def __enter__(self) -> Self:
        self._rich.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._rich.stop()

    def stage(self, name: str) -> None:
        """Begin a new bar in the place of the last one."""
        self._rich.reset(self._task, description=name)

    def total(self, rows: int) -> None:
        """The bar's end."""
        self._rich.update(self._task, total=rows)

    def wrote(self, rows: int) -> None:
        """Move the bar."""
        self._rich.advance(self._task, rows)
