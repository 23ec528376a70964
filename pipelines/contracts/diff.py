"""Compare two versions of a contract, and decide whether devices and readers of the old one go on undisturbed."""

from collections.abc import Iterator
from dataclasses import dataclass

from schemas.contract import Column, Contract, PayloadSpec


@dataclass(frozen=True, slots=True)
class Change:
    """One difference. `why` says what it breaks; empty if it breaks nothing."""

    where: str
    what: str
    why: str = ""

    @property
    def is_breaking(self) -> bool:
        """Whether a device or a reader of the old version is disturbed."""
        return bool(self.why)


@dataclass(frozen=True, slots=True)
class Difference:
    """All differences of two versions."""

    old: Contract
    new: Contract
    changes: tuple[Change, ...]

    @property
    def is_compatible(self) -> bool:
        """Whether every change breaks nothing."""
        return not any(change.is_breaking for change in self.changes)

    @property
    def version_wanted(self) -> str:
        """The lowest version that the new one may have: major for a break, minor for an addition, else patch."""
        major, minor, patch = map(int, self.old.version.split("."))
        if not self.changes:
            return self.old.version
        if not self.is_compatible:
            return f"{major + 1}.0.0"
        is_addition = any(change.what == "added" for change in self.changes)
        return f"{major}.{minor + 1}.0" if is_addition else f"{major}.{minor}.{patch + 1}"

    @property
    def is_version_right(self) -> bool:
        """Whether the new version is at least the one wanted."""
        return _ordered(self.new.version) >= _ordered(self.version_wanted)


def diff_contracts(old: Contract, new: Contract) -> Difference:
    """Compare two versions of one stream's contract, or two streams'."""
    changes = [
        *([Change("name", f"{old.name} -> {new.name}", "it is another stream")] if old.name != new.name else []),
        *_columns("", old.columns, new.columns),
        *_payload(old.payload, new.payload),
        *_quality(old, new),
        *_terms(old, new),
    ]
    return Difference(old, new, tuple(changes))


def _ordered(version: str) -> tuple[int, ...]:
    return tuple(map(int, version.split(".")))


def _columns(above: str, old: tuple[Column, ...], new: tuple[Column, ...]) -> Iterator[Change]:
    before, after = ({column.name: column for column in columns} for columns in (old, new))
    for name in before.keys() - after.keys():
        yield Change(above + name, "removed", "a device that still sends it is refused; readers lose it")
    for name in sorted(after.keys() - before.keys()):
        why = "rows of devices that do not send it yet are refused" if after[name].required else ""
        yield Change(above + name, "added", why)
    for name in (name for name in before if name in after):
        yield from _column(above + name, before[name], after[name])


def _column(where: str, old: Column, new: Column) -> Iterator[Change]:
    if (old.type, old.length) != (new.type, new.length):
        shown = [f"{each.type}[{each.length}]" if each.length else str(each.type) for each in (old, new)]
        yield Change(where, " -> ".join(shown), "the stream's table keeps the old type; give the column a new name")
        return
    yield from _columns(f"{where}.", old.fields, new.fields)
    if old.unit != new.unit:
        yield Change(where, f"unit {old.unit or 'none'} -> {new.unit or 'none'}", "the same number means something else")
    if old.required != new.required:
        why = "rows in which it is null are refused from now on" if new.required else ""
        yield Change(where, "required" if new.required else "not required any more", why)
    yield from _bound(where, "minimum", old.minimum, new.minimum, is_upper=False)
    yield from _bound(where, "maximum", old.maximum, new.maximum, is_upper=True)
    yield from _bound(where, "maximum length", old.max_length, new.max_length, is_upper=True)
    yield from _allowed(where, old, new)
    for what, first, second in (
        ("zone", old.zone, new.zone),
        ("unique", old.unique, new.unique),
        ("pii", old.pii, new.pii),
        ("source name", old.source_name, new.source_name),
    ):
        if first != second:
            yield Change(where, f"{what} {first or 'none'} -> {second or 'none'}")


def _bound(where: str, what: str, old: float | None, new: float | None, *, is_upper: bool) -> Iterator[Change]:
    if old == new:
        return
    shown = " -> ".join("none" if bound is None else f"{bound:g}" for bound in (old, new))
    is_tighter = new is not None and (old is None or (new < old if is_upper else new > old))
    yield Change(where, f"{what} {shown}", "values that were accepted are refused" if is_tighter else "")


def _allowed(where: str, old: Column, new: Column) -> Iterator[Change]:
    before, after = set(old.allowed), set(new.allowed)
    gone = sorted(before - after) if after else []
    if after and not before:
        yield Change(where, f"only {', '.join(new.allowed)} allowed", "other values were accepted and are refused")
    elif gone:
        yield Change(where, f"no longer allowed: {', '.join(gone)}", "values that were accepted are refused")
    elif before != after:
        more = ", ".join(sorted(after - before)) or "every value"
        yield Change(where, f"also allowed: {more}")


def _payload(old: PayloadSpec | None, new: PayloadSpec | None) -> Iterator[Change]:
    if old == new:
        return
    if old is None or new is None:
        why = "samples that bring a payload are refused" if new is None else ""
        is_needed = new is not None and new.required
        yield Change(
            "payload", "added" if old is None else "removed", "samples without a payload are refused" if is_needed else why
        )
        return
    gone = sorted(set(old.media_types) - set(new.media_types))
    if gone:
        yield Change("payload", f"media types removed: {', '.join(gone)}", "payloads that were accepted are refused")
    elif old.media_types != new.media_types:
        yield Change("payload", f"media types added: {', '.join(sorted(set(new.media_types) - set(old.media_types)))}")
    yield from _bound("payload", "largest size", old.max_bytes, new.max_bytes, is_upper=True)
    if old.required != new.required:
        yield Change("payload", f"required {old.required} -> {new.required}", "samples without one are refused" * new.required)


def _quality(old: Contract, new: Contract) -> Iterator[Change]:
    before, after = ({rule.name: rule.expression for rule in contract.quality} for contract in (old, new))
    for name in sorted(before.keys() | after.keys()):
        if before.get(name) == after.get(name):
            continue
        what = "removed" if name not in after else "added" if name not in before else "changed"
        yield Change(f"quality {name}", what, "" if what == "removed" else "rows that were accepted may be refused")


def _terms(old: Contract, new: Contract) -> Iterator[Change]:
    for what, first, second in (
        ("retention", old.retention_days, new.retention_days),
        ("owner", old.owner, new.owner),
        ("chips", ", ".join(chip.name for chip in old.chips), ", ".join(chip.name for chip in new.chips)),
    ):
        if first != second:
            yield Change(what, f"{first or 'none'} -> {second or 'none'}")
