"""What a start needs to know of every table, without opening those that nobody has written to since the last start.

A table that is not touched keeps the time of its log's folder, so one look at the folder tells that it is as it was. A cache: if
it is lost or does not fit, tables are opened.
"""

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import msgspec
from deltalake import Schema

from catchment.runtime.atomic_files import write_atomic
from pipelines.errors import CorruptLakeError
from pipelines.lake.delta_log import FOLDER
from pipelines.lake.lake import Lake
from pipelines.lake.layout import table_states_path
from pipelines.lake.table import open_table

OPENED_AT_ONCE = 8
# A folder that was written to a moment ago may be written to again within the same tick of the file system's clock.
SETTLED_NS = 2_000_000_000


class TableState(msgspec.Struct, frozen=True):
    """A table as it was when its log's folder had this number and time: its application transactions, and its schema as JSON."""

    inode: int
    changed_ns: int
    transactions: dict[str, int]
    schema: str

    def fields(self) -> Schema:
        """The schema."""
        return Schema.from_json(self.schema)


class TableStates:
    """The states of a lake's tables, looked up once for each name.

    Args:
        lake: the lake.
        apps: whose transactions to know.
    """

    def __init__(self, lake: Lake, *apps: str) -> None:
        self._lake, self._apps = lake, apps
        self._kept = _read(lake)
        self._found: dict[str, TableState | CorruptLakeError | None] = {}

    def look_up(self, names: Sequence[str]) -> None:
        """Have the states of these tables at hand; several are opened at once.

        Raises:
            RetryLaterError: the storage is away.
        """
        left: list[str] = []
        for name in names:
            kept = self._known(name)
            if kept is not None:
                self._found.setdefault(name, kept)
            elif name not in self._found:
                left.append(name)
        if left:
            with ThreadPoolExecutor(min(OPENED_AT_ONCE, len(left))) as pool:
                self._found.update(zip(left, pool.map(self._opened, left), strict=True))

    def get(self, name: str) -> TableState | None:
        """The state of a table; None if there is none.

        Raises:
            CorruptLakeError: its log cannot be read.
            RetryLaterError: the storage is away.
        """
        if name not in self._found:
            self.look_up([name])
        found = self._found[name]
        if isinstance(found, CorruptLakeError):
            raise found
        return found

    def keep(self) -> None:
        """Remember what was found for the next start.

        Raises:
            OSError: the disk refused.
        """
        if not self._lake.store.is_on_disk:
            return
        now_ns = time.time_ns()
        found = {name: state for name, state in self._found.items() if isinstance(state, TableState)}
        kept = {**self._kept, **{name: each for name, each in found.items() if each.changed_ns < now_ns - SETTLED_NS}}
        if kept != self._kept:
            path = table_states_path(self._lake.root)
            path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(path, msgspec.json.encode(kept), mode=0o644)
            self._kept = kept

    def _known(self, name: str) -> TableState | None:
        kept = self._kept.get(name)
        if kept is None or not set(self._apps) <= set(kept.transactions):
            return None
        return kept if _place(self._lake, name) == (kept.inode, kept.changed_ns) else None

    def _opened(self, name: str) -> TableState | CorruptLakeError | None:
        place = _place(self._lake, name)
        try:
            table = open_table(self._lake, name)
        except CorruptLakeError as error:
            return error
        if table is None:
            return None
        numbers = {app: table.transaction_version(app) or 0 for app in self._apps}
        return TableState(*place, numbers, table.schema().to_json())


def _place(lake: Lake, name: str) -> tuple[int, int]:
    """The folder's number and time, taken before the table is opened; of a remote lake none that was ever kept."""
    if not lake.store.is_on_disk:
        return 0, 0
    try:
        stat = (lake.root / name / FOLDER).stat()
    except FileNotFoundError:
        return 0, 0
    return stat.st_ino, stat.st_mtime_ns


def _read(lake: Lake) -> dict[str, TableState]:
    try:
        return msgspec.json.decode(table_states_path(lake.root).read_bytes(), type=dict[str, TableState])
    except (FileNotFoundError, msgspec.MsgspecError):
        return {}
