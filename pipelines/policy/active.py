"""The policies in force in a lake: documents by their hash, and a numbered history whose newest entry is the truth.

    policies/documents/<id>@<version>.json      what a policy says; written once, never changed
    policies/history/<n:06d>.json               who made which set active, when, and why; n counts from 1 without gaps

An entry takes its number by a hard link or a conditional put, which refuse to replace: of two people who apply at once, one is
told to look again.
"""

from collections.abc import Sequence
from pathlib import Path

import msgspec

from catchment.runtime.atomic_files import sync_folder
from pipelines.errors import ConflictError, CorruptLakeError, NotFoundError
from pipelines.lake.lake import Lake
from pipelines.policy.documents import load_policies
from schemas.policy import Policy

FOLDER = "policies"


class Entry(msgspec.Struct, frozen=True, omit_defaults=True):
    """One change of the active set.

    Attributes:
        number: counts from 1.
        at_us: when, microseconds since 1970.
        who: by whom.
        action: "apply" or "withdraw".
        policy: what was applied, `<id>@<version>`, or the id that was withdrawn.
        active: the whole set from then on, `<id>@<version>` each.
        note: why.
    """

    number: int
    at_us: int
    who: str
    action: str
    policy: str
    active: tuple[str, ...]
    note: str = ""


def history(lake: Lake) -> tuple[Entry, ...]:
    """Every change, oldest first.

    Raises:
        CorruptLakeError: an entry cannot be read.
    """
    return tuple(_read_entry(lake, number) for number in range(1, newest_number(lake) + 1))


def newest_number(lake: Lake, known: int = 0) -> int:
    """The number of the newest entry, 0 for none; looks no further back than `known`."""
    number = known
    while lake.local(_entry_path(lake, number + 1)).exists():
        number += 1
    return number


def active_policies(lake: Lake, number: int | None = None) -> tuple[Policy, ...]:
    """The set that is active now, or was after change `number`, by id.

    Raises:
        CorruptLakeError: an entry or a document is gone or not what was stored.
        NotFoundError: there is no such change.
    """
    newest = newest_number(lake)
    wanted = newest if number is None else number
    if not 0 <= wanted <= newest:
        raise NotFoundError(f"there is no change {wanted} of the policies; there are {newest}")
    return tuple(read_document(lake, label) for label in _read_entry(lake, wanted).active) if wanted else ()


def policies_in_force(lake: Lake, folder: str) -> tuple[Policy, ...]:
    """Return the policies that a run tags by: the lake's active set, and those of the configured folder whose ids it lacks.

    Raises:
        ConfigError: a file of the folder is no policy.
        CorruptLakeError: the active set cannot be read.
    """
    active = active_policies(lake)
    ids = {policy.id for policy in active}
    return (*active, *(policy for policy in load_policies(folder) if policy.id not in ids))


def apply_policy(lake: Lake, policy: Policy, who: str, at_us: int, note: str = "") -> Entry:
    """Make this version of a policy active in place of any other of its id; the same version again changes nothing.

    Raises:
        ConflictError: somebody else changed the set meanwhile.
        CorruptLakeError: the active set cannot be read.
    """
    number, labels = _active_labels(lake)
    if policy.label in labels:
        return _read_entry(lake, number)
    write_document(lake, policy)
    kept = [label for label in labels if label.partition("@")[0] != policy.id]
    entry = Entry(number + 1, at_us, who, "apply", policy.label, tuple(sorted([*kept, policy.label])), note)
    _append(lake, entry)
    return entry


def withdraw_policy(lake: Lake, policy_id: str, who: str, at_us: int, note: str = "") -> Entry:
    """Make a policy inactive.

    Raises:
        NotFoundError: it is not active.
        ConflictError: somebody else changed the set meanwhile.
    """
    number, labels = _active_labels(lake)
    kept = tuple(label for label in labels if label.partition("@")[0] != policy_id)
    if len(kept) == len(labels):
        raise NotFoundError(f"policy {policy_id!r} is not active; active are {', '.join(labels) or 'none'}")
    entry = Entry(number + 1, at_us, who, "withdraw", policy_id, kept, note)
    _append(lake, entry)
    return entry


def write_document(lake: Lake, policy: Policy) -> None:
    """Store what a policy says under its id and version, once."""
    path = _document_path(lake, policy.label)
    if not lake.local(path).exists():
        _make_folder(lake, path.parent)
        lake.put(path, msgspec.json.encode(policy))


def read_document(lake: Lake, label: str) -> Policy:
    """The policy of that id and version.

    Raises:
        CorruptLakeError: it is gone, or not what its name says.
    """
    path = _document_path(lake, label)
    try:
        policy = msgspec.json.decode(lake.local(path).read_bytes(), type=Policy)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: an active policy cannot be read ({error}); restore it") from error
    if policy.label != label:
        raise CorruptLakeError(f"{path}: holds {policy.label}; restore it")
    return policy


def known_versions(lake: Lake, policy_id: str) -> tuple[str, ...]:
    """The versions of a policy that were ever applied, oldest first, `<id>@<version>` each."""
    applied = [entry.policy for entry in history(lake) if entry.action == "apply"]
    return tuple(dict.fromkeys(label for label in applied if label.partition("@")[0] == policy_id))


def _active_labels(lake: Lake) -> tuple[int, Sequence[str]]:
    number = newest_number(lake)
    return number, (_read_entry(lake, number).active if number else ())


def _read_entry(lake: Lake, number: int) -> Entry:
    path = _entry_path(lake, number)
    try:
        return msgspec.json.decode(lake.local(path).read_bytes(), type=Entry)
    except (OSError, msgspec.MsgspecError) as error:
        raise CorruptLakeError(f"{path}: the history of the policies cannot be read ({error}); restore it") from error


def _append(lake: Lake, entry: Entry) -> None:
    path = _entry_path(lake, entry.number)
    _make_folder(lake, path.parent)
    try:
        lake.create(path, msgspec.json.encode(entry))
    except ConflictError as error:
        raise ConflictError(f"{path}: somebody else changed the active policies meanwhile; look, then try again") from error
    sync_folder(path.parent)


def _make_folder(lake: Lake, folder: Path) -> None:
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        sync_folder(folder.parent)
        sync_folder(lake.root)


def _document_path(lake: Lake, label: str) -> Path:
    return lake.root / FOLDER / "documents" / f"{label}.json"


def _entry_path(lake: Lake, number: int) -> Path:
    return lake.root / FOLDER / "history" / f"{number:06d}.json"
