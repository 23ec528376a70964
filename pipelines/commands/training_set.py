"""`catchment set`: build, list, show and verify training sets."""

import json
import sys
from pathlib import Path
from types import TracebackType
from typing import Annotated, Self

import msgspec
import typer
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress

from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, Lake
from pipelines.config import load_core_config, require_folder
from pipelines.errors import RefusedError
from pipelines.lake import lake as lakes
from pipelines.lake.lake import lake_at, lake_of
from pipelines.training.bucket_sets import bring_set
from pipelines.training.build import DEFAULT_SPLIT, BuildOptions, build_set
from pipelines.training.catalogue import list_sets, set_folder
from pipelines.training.manifest import MANIFEST_NAME, Manifest, load_manifest
from pipelines.training.open import open_set
from pipelines.training.shards import Progress

set_app = typer.Typer(help="Training sets: build one, list them, look at one, check one.", no_args_is_help=True)


@set_app.command("build")
def build(  # noqa: PLR0913, PLR0917 - one argument for each option of the command
    name: Annotated[str, typer.Argument(help="Name of the set.")],
    stream: Annotated[list[str], typer.Option("--from", help="Stream to select from; may be given again.")],
    where: Annotated[str, typer.Option(help="Expression over columns and tags, e.g. \"has('dark') AND speed > 30\".")] = "",
    split: Annotated[str, typer.Option(help="Shares, e.g. train=0.8,test=0.2.")] = "",
    group: Annotated[str, typer.Option(help="Columns whose equal values stay in one split.")] = "device",
    columns: Annotated[str, typer.Option(help="Columns to keep, by comma; all if empty.")] = "",
    with_payload: Annotated[bool | None, typer.Option("--with-payload/--tabular", help="Default: where there is one.")] = None,
    seed: Annotated[int, typer.Option(help="Of split and shuffle.")] = 0,
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Build the next version of a training set."""
    options = BuildOptions(
        split=parse_split(split),
        group=tuple(group.split(",")),
        columns=tuple(columns.split(",")) if columns else None,
        with_payload=with_payload,
    )
    found = _lake_of(lake, config)
    with _Bar() as bar:
        manifest = build_set(found, name, tuple(stream), where, seed=seed, options=options, progress=bar)
    _print_manifest(manifest, found.root / "sets" / name / str(manifest.version), as_json)
    for empty in (part for part, rows in manifest.split_rows().items() if not rows):
        _note(f"split {empty} is empty: there are too few groups of {group} for its share; try --group with finer columns")


@set_app.command("ls")
def ls(lake: Lake = None, config: Config = None, as_json: AsJson = False) -> None:
    """List the sets of the lake."""
    sets = list_sets(_lake_of(lake, config))
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
    folder = set_folder(_lake_of(lake, config), reference)
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
    found = _lake_of(lake, config)
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


def _lake_of(lake: Path | None, config: Path | None) -> lakes.Lake:
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
        table.add_row("from", f"{source.stream} at Delta version {source.delta_version}: {source.rows:,} rows")
    for split, rows in manifest.split_rows().items():
        table.add_row(split, f"{rows:,} rows")
    for count in manifest.tags:
        table.add_row(f"tag {count.tag}", f"{count.split}: {count.rows:,} rows")
    for part in manifest.left_out:
        table.add_row("left out", f"{part.rows:,} rows: {part.reason}")
    table.add_row("policies", ", ".join(manifest.policies) or "none")
    table.add_row("columns", ", ".join(column.name for column in manifest.columns))
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

    def total(self, rows: int) -> None:
        """The bar's end."""
        self._rich.update(self._task, total=rows)

    def wrote(self, rows: int) -> None:
        """Move the bar."""
        self._rich.advance(self._task, rows)
