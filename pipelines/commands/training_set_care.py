"""`catchment set diff | check | card | pin | rm | gc | export | exports`: what sets hold, which versions stay, who has which."""

import getpass
import time
from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from catchment.runtime.atomic_files import write_atomic
from catchment.runtime.clock import SystemClock
from catchment.runtime.exits import STOP
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, Lake
from pipelines.commands.training_set import lake_from, set_app
from pipelines.errors import RefusedError
from pipelines.lake import lake as lakes
from pipelines.training.bucket_sets import bring_set
from pipelines.training.card import card_facts, render_card
from pipelines.training.catalogue import set_folder
from pipelines.training.compare import SetDifference, SetFolder, difference
from pipelines.training.export.run import ExportFormat, ExportOrder, export_set, exports_of
from pipelines.training.export.samples import ExportSource
from pipelines.training.leaks import find_leaks
from pipelines.training.manifest import MANIFEST_NAME, load_manifest
from pipelines.training.retire import Pin, pin_set, release_set, removable_sets, remove_set
from pipelines.training.spec import parse_duration_s

Reference = Annotated[str, typer.Argument(help="name, or name/version.")]


@set_app.command("export")
def export(  # noqa: PLR0913, PLR0917 - one argument for each option of the command
    reference: Reference,
    target: Annotated[Path, typer.Argument(metavar="DIR", help="A folder that is not there yet.")],
    form: Annotated[ExportFormat, typer.Option("--to", help="The format.")],
    recipient: Annotated[str, typer.Option(help="Who gets it; goes into the record.")] = "",
    expires: Annotated[str, typer.Option(help="Until when they may keep it, e.g. 2027-06-30.")] = "",
    boxes: Annotated[str, typer.Option(help="coco and yolo: the column of boxes.")] = "",
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Write a set in another tool's format, payloads byte for byte, and record who got it."""
    found = lake_from(lake, config)
    exported = _folder_of(found, reference)
    bring_set(found, exported.folder, exported.manifest)
    order = ExportOrder(form, recipient, _day(expires), boxes)
    record = export_set(found, ExportSource(exported.folder, exported.manifest), target, order, SystemClock())
    if as_json:
        say_json(msgspec.json.encode(record))
        return
    say(f"{target}: {record.rows:,} samples in {record.files:,} files, {record.bytes:,} bytes, for {record.recipient}")


@set_app.command("exports")
def exports(reference: Reference, lake: Lake = None, config: Config = None, as_json: AsJson = False) -> None:
    """List who got a set, in which format, and until when."""
    found = lake_from(lake, config)
    records = exports_of(found, load_manifest(set_folder(found, reference) / MANIFEST_NAME))
    if as_json:
        say_json(msgspec.json.encode(records))
        return
    table = PlainTable("version", "format", "recipient", "expires", "rows", "bytes", "sha256")
    for record in records:
        expiry = str(record.expires or "-") + (" (past)" if record.expires and record.expires < date.today() else "")  # noqa: DTZ011 - a day of the person's calendar
        table.add_row(
            *(str(record.version), str(record.format), record.recipient, expiry),
            *(f"{record.rows:,}", f"{record.bytes:,}", record.sha256[:12]),
        )
    PlainConsole().print(table)


def _day(text: str) -> date | None:
    if not text:
        return None
    try:
        return datetime.strptime(text, "%Y-%m-%d").date()  # noqa: DTZ007 - a day has no zone
    except ValueError as error:
        raise RefusedError(f"--expires {text[:40]!r}: give a day like 2027-06-30") from error


__all__ = ["set_app"]
_MIB = 1024 * 1024


@set_app.command("diff")
def diff(
    before: Annotated[str, typer.Argument(metavar="A", help="name/version before.")],
    after: Annotated[str, typer.Argument(metavar="B", help="name/version after.")],
    label: Annotated[str, typer.Option(help="Column of classes to compare; default: the one that the spec of B names.")] = "",
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Show which samples two sets do not share, and which changed split, class or payload."""
    found = lake_from(lake, config)
    differing = difference(found, _folder_of(found, before), _folder_of(found, after), label)
    if as_json:
        say_json(msgspec.json.encode(differing))
        return
    PlainConsole().print(_difference_table(differing))


@set_app.command("check")
def check(
    reference: Reference,
    near: Annotated[str, typer.Option(help="Rows of one device nearer than this in time are neighbours.")] = "2s",
    bits: Annotated[int, typer.Option(min=0, max=16, help="Of 64 bits, so many may differ in near-duplicates.")] = 6,
    within: Annotated[str, typer.Option(help="Near-duplicates of one device within this time only; default: anywhere.")] = "",
    pictures: Annotated[bool, typer.Option("--pictures", help="Decode payloads where the set has no hashes.")] = False,
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Look for leaks between splits: neighbours in time, groups, equal and near-duplicate payloads; exit code 1 if any."""
    found = lake_from(lake, config)
    folder = _folder_of(found, reference)
    near_s, within_s = parse_duration_s(near), parse_duration_s(within)
    report = find_leaks(found, folder, near_s=near_s, bits=bits, within_s=within_s, with_pictures=pictures)
    if as_json:
        say_json(msgspec.json.encode(report))
    else:
        table = PlainTable("leak", "split", "rows", "share", title=f"{folder.manifest.name} {folder.manifest.version}")
        for leak in report.leaks:
            table.add_row(leak.kind, leak.split, f"{leak.rows:,}", f"{leak.share:.1%}")
        PlainConsole().print(table)
        for reason in report.unchecked:
            say(f"not checked: {reason}", err=True)
    if report.rows:
        raise typer.Exit(STOP)


@set_app.command("card")
def card(
    reference: Reference,
    output: Annotated[Path, typer.Option("-o", "--output", help="Where the page goes.")] = Path("card.html"),
    lake: Lake = None,
    config: Config = None,
) -> None:
    """Write the card of a set as one HTML page, as this release draws it."""
    found = lake_from(lake, config)
    folder = _folder_of(found, reference)
    bring_set(found, folder.folder, folder.manifest)
    facts = card_facts(found, folder.manifest, folder.folder)
    write_atomic(output, render_card(folder.manifest, folder.folder, facts).encode(), mode=0o644)
    say(f"{output}: the card of {folder.manifest.name} {folder.manifest.version}")


@set_app.command("pin")
def pin(
    reference: Reference,
    why: Annotated[str, typer.Option("-m", "--message", help="Why it must stay.")] = "",
    release: Annotated[bool, typer.Option("--release", help="Let it be removed again.")] = False,
    lake: Lake = None,
    config: Config = None,
) -> None:
    """Keep a version of a set: `rm` refuses it and `gc` leaves it."""
    found = lake_from(lake, config)
    manifest = _folder_of(found, reference).manifest
    if release:
        release_set(found, manifest)
        say(f"{manifest.name} {manifest.version}: released")
        return
    if not why.strip():
        raise RefusedError("say why it must stay (-m), so that somebody can release it one day")
    pin_set(found, manifest, Pin(getpass.getuser(), time.time_ns() // 1_000_000, why))
    say(f"{manifest.name} {manifest.version}: pinned")


@set_app.command("rm")
def rm(reference: Reference, lake: Lake = None, config: Config = None) -> None:
    """Remove one version, given as name/version. Its number is never given out again."""
    if "/" not in reference:
        raise RefusedError(f"{reference[:80]!r}: name the version too, as name/version; only one is removed")
    found = lake_from(lake, config)
    manifest = _folder_of(found, reference).manifest
    freed = remove_set(found, manifest)
    say(f"{manifest.name} {manifest.version}: removed, {freed / _MIB:,.1f} MiB")


@set_app.command("gc")
def gc(
    keep: Annotated[int, typer.Option(help="How many of the newest versions of each set stay.")] = 3,
    is_sure: Annotated[bool, typer.Option("--yes", help="Remove them; without it they are only listed.")] = False,
    lake: Lake = None,
    config: Config = None,
    as_json: AsJson = False,
) -> None:
    """Remove old versions that are not pinned; lists them first."""
    found = lake_from(lake, config)
    old = removable_sets(found, keep)
    for manifest in old if is_sure else ():
        remove_set(found, manifest)
    if as_json:
        rows = [{"name": each.name, "version": each.version, "bytes": each.bytes, "is_removed": is_sure} for each in old]
        say_json(msgspec.json.encode(rows))
        return
    for manifest in old:
        say(f"{manifest.name} {manifest.version}: {manifest.bytes / _MIB:,.1f} MiB{'' if is_sure else ' would go (--yes)'}")
    say(f"{len(old)} versions, {sum(each.bytes for each in old) / _MIB:,.1f} MiB")


def _folder_of(lake: lakes.Lake, reference: str) -> SetFolder:
    folder = set_folder(lake, reference)
    return SetFolder(folder, load_manifest(folder / MANIFEST_NAME))


def _difference_table(differing: SetDifference) -> PlainTable:
    table = PlainTable("what", "from", "to", "samples")
    table.add_row("the same", "", "", f"{differing.same:,}")
    table.add_row("only in B", "", "", f"{differing.added:,}")
    table.add_row("only in A", "", "", f"{differing.removed:,}")
    for moved in differing.moved:
        table.add_row("moved split", moved.before, moved.after, f"{moved.rows:,}")
    for moved in differing.relabelled:
        table.add_row(f"changed {differing.label}", moved.before or "-", moved.after or "-", f"{moved.rows:,}")
    if differing.payload_changed:
        table.add_row("other payload", "", "", f"{differing.payload_changed:,}")
    return table
