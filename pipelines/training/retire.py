"""Versions of sets that are kept whatever happens, and those that are given up: pin, rm, gc.

A number is never given out twice: what is removed leaves its number taken. The newest version of a set holds the splits of its
groups, so it stays unless it is removed by name.
"""

import os
import shutil
from contextlib import suppress
from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import ConflictError, CorruptLakeError, RefusedError
from pipelines.lake.lake import Lake
from pipelines.lake.layout import SET_DRAFT, SET_NUMBERS, SETS
from pipelines.training.catalogue import list_sets
from pipelines.training.manifest import MANIFEST_NAME, Manifest

PINS = ".pins"
MAX_PIN_BYTES = 64 * 1024


class Pin(msgspec.Struct, frozen=True):
    """Who keeps a version of a set, since when, and why."""

    who: str
    since_ms: int
    why: str


def pin_set(lake: Lake, manifest: Manifest, pin: Pin) -> None:
    """Keep a version: it cannot be removed until it is released.

    Raises:
        RefusedError: it is pinned.
        RetryLaterError: the storage is unavailable.
    """
    path = _pin_path(lake, manifest.name, manifest.version)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        lake.create(path, msgspec.json.encode(pin) + b"\n")
    except ConflictError as error:
        raise RefusedError(f"{manifest.name}/{manifest.version} is pinned already; `set pin --release` releases it") from error


def release_set(lake: Lake, manifest: Manifest) -> None:
    """Let a version be removed again.

    Raises:
        RefusedError: it is not pinned.
    """
    if pin_of(lake, manifest) is None:
        raise RefusedError(f"{manifest.name}/{manifest.version} is not pinned")
    lake.delete(_pin_path(lake, manifest.name, manifest.version))


def pin_of(lake: Lake, manifest: Manifest) -> Pin | None:
    """The pin of a version; None without one.

    Raises:
        CorruptLakeError: it cannot be read.
    """
    path = _pin_path(lake, manifest.name, manifest.version)
    try:
        body = lake.read(path)
    except FileNotFoundError:
        return None
    try:
        return msgspec.json.decode(body[:MAX_PIN_BYTES], type=Pin)
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{path}: not a pin ({error}); remove it by hand if the set may go") from error


def remove_set(lake: Lake, manifest: Manifest) -> int:
    """Remove a version, so that nobody finds half of it: a folder is renamed first, in a bucket the manifest goes first.

    Returns:
        The bytes that its files had.

    Raises:
        RefusedError: it is pinned.
        RetryLaterError: the storage is unavailable.
    """
    if (pin := pin_of(lake, manifest)) is not None:
        raise RefusedError(f"{manifest.name}/{manifest.version} is pinned by {pin.who} ({pin.why}); release it first")
    folder = lake.root / SETS / manifest.name / str(manifest.version)
    number = lake.root / SETS / manifest.name / SET_NUMBERS / str(manifest.version)
    number.parent.mkdir(parents=True, exist_ok=True)
    with suppress(ConflictError):  # the number is taken, as it must be
        lake.create(number, b"removed\n")
    if lake.store.renames_folders:
        gone = folder.with_name(f"{SET_DRAFT}removed-{folder.name}-{os.getpid()}")  # vacuum removes it if this process dies
        folder.rename(gone)
        sync_folder(gone.parent)
        folder = gone
    else:
        lake.delete(*(folder / name for name in (MANIFEST_NAME, "card.html", *(entry.path for entry in manifest.files))))
    shutil.rmtree(folder, ignore_errors=not lake.store.renames_folders)
    return manifest.bytes


def removable_sets(lake: Lake, keep: int) -> list[Manifest]:
    """The versions that `gc` gives up: all but the `keep` newest of each set, and but those that are pinned.

    Raises:
        RefusedError: not even the newest would stay.
        CorruptLakeError: a manifest or a pin cannot be read.
    """
    if keep < 1:
        raise RefusedError("keep at least the newest version: it holds the splits of the groups (--keep 1)")
    by_name: dict[str, list[Manifest]] = {}
    for manifest in list_sets(lake):
        by_name.setdefault(manifest.name, []).append(manifest)
    old = [each for found in by_name.values() for each in sorted(found, key=lambda one: one.version)[:-keep]]
    return [each for each in old if pin_of(lake, each) is None]


def _pin_path(lake: Lake, name: str, version: int) -> Path:
    return lake.root / SETS / name / PINS / f"{version}.json"
