"""Plans, pins and segments on disk: found without listing landing folders, written once and never over another's."""

from collections.abc import Mapping
from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.bridge.segment import sealed_path
from pipelines.errors import ConflictError, CorruptLakeError
from pipelines.ingest.plan import Pins, Plan, SegmentRef, encode_pins, pins_digest
from pipelines.lake.lake import Lake
from pipelines.lake.layout import landing_folder, pins_path, plan_path
from pipelines.lake.upload import bridges_of

LOOKS_BEYOND_A_HOLE = 8


def find_segments(lake: Lake, cursors: Mapping[str, int], limit: int) -> list[SegmentRef]:
    """Sealed segments that wait, by asking for the next number of each bridge: a landing of a million files costs nothing.

    Args:
        lake: the lake.
        cursors: per bridge, the next number to read.
        limit: how many at most, shared fairly by the bridges.
    """
    bridges = bridges_of(lake)
    found: list[SegmentRef] = []
    share = max(1, limit // max(1, len(bridges)))
    for bridge in bridges:
        number, folder = cursors.get(bridge, 1), landing_folder(lake.root, bridge)
        for wanted in range(number, number + share):
            size = lake.size(sealed_path(folder, wanted))
            if size is not None:
                found.append(SegmentRef(bridge, wanted, size))
            elif _is_lost(lake, folder, wanted):
                found.append(SegmentRef(bridge, wanted, 0, f"{sealed_path(folder, wanted)}: is gone, and later ones are there"))
            else:
                break
    return found


def _is_lost(lake: Lake, folder: Path, number: int) -> bool:
    """Whether a segment was taken away: a bridge leaves no gap, so nothing would ever come to fill it.

    Of a remote lake nobody asks: each look would cost more requests, and there a bridge closes the gap itself.
    """
    if not lake.store.is_on_disk:
        return False
    return any(sealed_path(folder, later).exists() for later in range(number + 1, number + 1 + LOOKS_BEYOND_A_HOLE))


def write_pins(lake: Lake, pins: Pins) -> str:
    """Store the rules under their digest, which is returned; nothing is written if they are there."""
    body = encode_pins(pins)
    digest = pins_digest(body)
    path = pins_path(lake.root, digest)
    if not lake.local(path).exists():
        path.parent.mkdir(parents=True, exist_ok=True)
        sync_folder(path.parent.parent)
        lake.put(path, body)
    return digest


def read_pins(lake: Lake, digest: str) -> Pins:
    """The rules of that digest.

    Raises:
        CorruptLakeError: they are missing or not what was stored.
    """
    path = pins_path(lake.root, digest)
    try:
        body = lake.local(path).read_bytes()
        if pins_digest(body) != digest:
            raise CorruptLakeError(f"{path}: its bytes do not match its name; restore it")
        return msgspec.json.decode(body, type=Pins)
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        raise CorruptLakeError(f"{path}: the rules of a run cannot be read ({error}); restore it") from error


def write_plan(lake: Lake, plan: Plan) -> None:
    """Store a plan under its number, durable, never over another.

    Raises:
        ConflictError: there is a plan of that number.
    """
    path = plan_path(lake.root, plan.run)
    try:
        lake.create(path, msgspec.json.encode(plan))
    except ConflictError as error:
        raise ConflictError(f"{path}: run {plan.run} is planned already; run that plan") from error


def read_plan(lake: Lake, run: int) -> Plan | None:
    """The plan of a run; None if there is none.

    Raises:
        CorruptLakeError: it is not a plan.
    """
    try:
        return msgspec.json.decode(lake.read(plan_path(lake.root, run)), type=Plan)
    except FileNotFoundError:
        return None
    except msgspec.MsgspecError as error:
        raise CorruptLakeError(f"{plan_path(lake.root, run)}: not a plan ({error}); restore it") from error
