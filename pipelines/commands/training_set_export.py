"""`catchment set export | exports`: hand a set to another tool, and see who has which."""

from datetime import date, datetime
from pathlib import Path
from typing import Annotated

import msgspec
import typer

from catchment.runtime.clock import SystemClock
from catchment.runtime.output import say, say_json
from catchment.runtime.terminal import PlainConsole, PlainTable
from pipelines.commands.options import AsJson, Config, Lake
from pipelines.commands.training_set import lake_from
from pipelines.commands.training_set_care import set_app
from pipelines.errors import RefusedError
from pipelines.training.bucket_sets import bring_set
from pipelines.training.catalogue import set_folder
from pipelines.training.export.run import ExportFormat, ExportOrder, export_set, exports_of
from pipelines.training.export.samples import ExportSource
from pipelines.training.manifest import MANIFEST_NAME, load_manifest

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
    folder = set_folder(found, reference)
    manifest = load_manifest(folder / MANIFEST_NAME)
    bring_set(found, folder, manifest)
    order = ExportOrder(form, recipient, _day(expires), boxes)
    record = export_set(found, ExportSource(folder, manifest), target, order, SystemClock())
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
