"""Give a finished folder the next version number of its set: one rename, after which it never changes."""

from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder, write_atomic
from pipelines.errors import ConflictError
from pipelines.lake.lake import Lake
from pipelines.training.bucket_sets import share_set, take_number, taken_numbers
from pipelines.training.card import card_facts, render_card
from pipelines.training.manifest import MANIFEST_NAME, Manifest, encode_manifest

_PUBLISH_ATTEMPTS = 100


def publish(lake: Lake, home: Path, folder: Path, manifest: Manifest) -> Manifest:
    """Give the folder the next free version number; a number that somebody else took meanwhile is skipped.

    Raises:
        ConflictError: others were faster every time.
    """
    for _ in range(_PUBLISH_ATTEMPTS):
        taken = [int(path.name) for path in home.iterdir() if path.name.isdecimal()]
        taken += taken_numbers(lake, home.name)
        number = max(taken, default=0) + 1
        numbered = msgspec.structs.replace(manifest, version=number, line=manifest.line or number)
        write_atomic(folder / MANIFEST_NAME, encode_manifest(numbered), mode=0o644)
        card = render_card(numbered, folder, card_facts(lake, numbered, folder))
        write_atomic(folder / "card.html", card.encode(), mode=0o644)
        for path in folder.rglob("*"):
            if path.is_file():
                path.chmod(0o444)
        sync_folder(folder)
        final = home / str(numbered.version)
        try:
            take_number(lake, home.name, numbered.version)
            folder.rename(final)
        except (OSError, ConflictError) as error:
            if isinstance(error, OSError) and not final.exists():
                raise
            continue
        sync_folder(home)
        share_set(lake, final)
        return numbered
    raise ConflictError(f"{home}: {_PUBLISH_ATTEMPTS} times another build took the version number first; try again")
