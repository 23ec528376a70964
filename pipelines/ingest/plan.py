"""Plan n: exactly what run n will read and by which rules, decided before it starts. No IO.

A plan names segments, and pins contracts and policies by digest, so that a run repeated after a crash gives the same
files under the same names whatever has happened to the rules since.
"""

import hashlib
from collections.abc import Mapping, Sequence

import msgspec

from pipelines.labels.rule_columns import LabelPin
from schemas.contract import Contract
from schemas.policy import Policy

ITEM_BYTES = 64 * 1024 * 1024


class SegmentRef(msgspec.Struct, frozen=True):
    """One sealed segment. `skip_reason` says why its bytes cannot be trusted; such a segment is skipped, not read."""

    bridge: str
    number: int
    bytes: int
    skip_reason: str = msgspec.field(name="set_aside", default="")


class Pins(msgspec.Struct, frozen=True, omit_defaults=True):
    """The rules of a run: every contract version and every policy it may use, and the versions of labels that policies read."""

    contracts: tuple[Contract, ...]
    policies: tuple[Policy, ...]
    labels: tuple[LabelPin, ...] = ()

    def contract(self, stream: str, version: str | None) -> Contract | None:
        """The contract of a stream in that version; the newest for None."""
        named = [contract for contract in self.contracts if contract.name == stream]
        if version is not None:
            return next((contract for contract in named if contract.version == version), None)
        return max(named, key=version_order, default=None)


class ReplayItem(msgspec.Struct, frozen=True):
    """A quarantined row that a run replays or discards (`outcome`); `spans` are its seqs, `count` its samples."""

    id: str
    outcome: str
    device: str
    stream: str
    epoch: int
    spans: tuple[tuple[int, int], ...]
    count: int


class Plan(msgspec.Struct, frozen=True):
    """The work of run `run`: read `segments` in this order by the rules `pins`, then leave the cursors at `next_numbers`.

    With `replay_items` it carries out a request instead: message k of its one segment holds the seqs of release k.
    """

    run: int
    planned_at_us: int
    pins: str
    segments: tuple[SegmentRef, ...]
    next_numbers: dict[str, int]
    replay_items: tuple[ReplayItem, ...] = msgspec.field(name="releases", default=())

    def items(self) -> list[tuple[int, ...]]:
        """The work items: indexes of neighbouring segments, together about `ITEM_BYTES`, so that files are not tiny."""
        packed: list[tuple[int, ...]] = []
        current: list[int] = []
        size = 0
        for index, segment in enumerate(self.segments):
            if segment.skip_reason:
                continue
            if current and size + segment.bytes > ITEM_BYTES:
                packed.append(tuple(current))
                current, size = [], 0
            current.append(index)
            size += segment.bytes
        return [*packed, tuple(current)] if current else packed


def version_order(contract: Contract) -> tuple[int, ...]:
    """Sorts versions as numbers: 1.10.0 is newer than 1.9.0."""
    return tuple(int(part) for part in contract.version.split("."))


def make_plan(run: int, now_us: int, pins: str, cursors: Mapping[str, int], found: Sequence[SegmentRef]) -> Plan | None:
    """The next plan; None if nothing waits.

    Args:
        run: its number.
        now_us: microseconds since 1970; becomes `quarantined_at` and so must be pinned too.
        pins: the digest of the rules.
        cursors: per bridge, the next number to read before this plan.
        found: sealed segments, per bridge in order and without gaps.
    """
    if not found:
        return None
    ordered = tuple(sorted(found, key=lambda segment: (segment.bridge, segment.number)))
    after = dict(cursors)
    for segment in ordered:
        assert segment.number == after.get(segment.bridge, 1), "segments are read in order, without gaps"
        after[segment.bridge] = segment.number + 1
    return Plan(run, now_us, pins, ordered, after)


def encode_pins(pins: Pins) -> bytes:
    """The canonical JSON form."""
    ordered = Pins(
        tuple(sorted(pins.contracts, key=lambda contract: (contract.name, version_order(contract)))),
        tuple(sorted(pins.policies, key=lambda policy: policy.id)),
        pins.labels,
    )
    return msgspec.json.encode(ordered)


def pins_digest(body: bytes) -> str:
    """The name of pins: the SHA-256 of their canonical form."""
    return hashlib.sha256(body).hexdigest()
