"""The rows and payloads of a lake as people and programs read them: commands, notebooks, training sets, exports, re-tagging.

Every such reader opens tables, their files and payloads here, so that there is one place where rules of access can stand.
There are none yet: all is passed through. What keeps the lake itself (runs, maintenance, roll-ups) reads beside it, below
`pipelines/lake` and in the few modules that a test names. Stands alone because a `Lake` must not load the table library.
"""

from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
from deltalake import DeltaTable

from pipelines.lake.lake import Lake
from pipelines.lake.payload import PayloadRefs, read_payload, read_payloads
from pipelines.lake.reference import check_table_files, table_path
from pipelines.lake.table import open_table


@dataclass(frozen=True, slots=True)
class View:
    """What one reader may see of a lake.

    Args:
        lake: the lake.
    """

    lake: Lake

    def table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """A table, as it is now or as it was at a version; None if there is none.

        Raises:
            DeltaError: there is no such version.
            CorruptLakeError: its log cannot be read.
            RetryLaterError: the storage is unavailable.
        """
        table = open_table(self.lake, name)
        if table is not None and version is not None:
            table.load_as_version(version)
        return table

    def checked_table(self, name: str, version: int | None = None) -> DeltaTable | None:
        """As `table`, for libraries that open the table's files themselves.

        Raises:
            BadReferenceError: a file of the table is a link.
        """
        table = self.table(name, version)
        if table is not None:
            check_table_files(self.lake, name, table)
        return table

    def file(self, table: str, path: object) -> Path:
        """A data file of a table, brought here first from a bucket.

        Args:
            table: the table's folder, relative to the lake root.
            path: path of the file as the table's log says it.

        Raises:
            BadReferenceError: the path leads out of the lake or through a link, or it is not a plain file.
            RetryLaterError: the storage is unavailable.
        """
        return table_path(self.lake, table, path)

    def payload(self, shard: str, offset: int, length: int, row: int, of: str = "") -> bytes:
        """The payload of one sample; arguments and errors are those of `read_payload`."""
        return read_payload(self.lake, shard, offset, length, row, of)

    def payloads(self, refs: PayloadRefs) -> pa.Array:
        """The payloads of many samples; arguments and errors are those of `read_payloads`."""
        return read_payloads(self.lake, refs)
