"""Files that a row, a manifest or a table's log names: found below the lake root only, whatever the name says.

What names them came from outside once: `../`, absolute names, other schemes and links would read any file of the builder of a
set. All readers of payloads and of table files come through here. The lake root itself may be a link; below it none is followed.
"""

import os
import stat
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq
from deltalake import DeltaTable

from catchment.runtime.beneath import (
    RefusedFileError,
    binary_beneath,
    inner_parts,
    status_beneath,
)
from pipelines.errors import BadReferenceError, CorruptLakeError
from pipelines.lake.lake import Lake

_SHOWN = 120
_MAGIC = b"PAR1"  # how a Parquet file begins and ends
_FOOTER_END_BYTES = 8  # the footer's length, and the magic
IS_SECOND_NAME = "a second name (hard link) of a private file"


def sample_label(stream: object, device: object, epoch: object, seq: object) -> str:
    """How a message names a sample: by the text that `--sample` takes, and its stream."""
    return f"sample {device}/{epoch}/{seq} of {stream}"


def checked_name(name: object, of: str) -> str:
    """The name itself, if it stays below the lake root.

    Args:
        name: what a row, a manifest or a log says.
        of: who says so, for the message.

    Raises:
        BadReferenceError: it leads elsewhere.
    """
    try:
        if not isinstance(name, str):
            raise ValueError("not a text")  # noqa: TRY301, TRY004  # one refusal for all that is wrong with a name
        inner_parts(name)
    except ValueError as error:
        raise _refused(name, of, str(error)) from error
    return name


def open_referred(lake: Lake, name: object, of: str) -> BinaryIO:
    """Open a file of the lake that a row refers to; of a remote lake it is fetched first.

    Args:
        lake: the lake.
        name: path of the file as the row says it.
        of: the row, such as `sample car-1/7/42`, for the message.

    Raises:
        BadReferenceError: the name leads out of the lake or through a link, or it is not a plain file.
        CorruptLakeError: it is missing or cannot be read.
        RetryLaterError: the storage is unavailable.
    """
    checked = checked_name(name, of)
    try:
        try:
            return _opened(lake, checked)
        except FileNotFoundError:
            lake.local(lake.root / checked)
            return _opened(lake, checked)
    except RefusedFileError as error:
        raise _refused(name, of, str(error.strerror)) from error
    except OSError as error:
        raise CorruptLakeError(
            f"{lake.root / checked}: cannot be opened ({error.strerror}); {of} refers to it, so restore it"
        ) from error


def referred_path(lake: Lake, name: object, of: str, *, fetch: bool = True) -> Path:
    """The path of a file of the lake, for libraries that open by path only. It need not be there.

    Args:
        lake: the lake.
        name: path of the file as the row says it.
        of: the row, for the message.
        fetch: whether a file of a remote lake is brought here first.

    Raises:
        BadReferenceError: the name leads out of the lake or through a link, or it is not a plain file.
        RetryLaterError: the storage is unavailable.
    """
    path = lake.root / checked_name(name, of)
    try:
        _check_status(lake, path)
        if fetch and not path.exists():
            lake.local(path)
            _check_status(lake, path)
    except RefusedFileError as error:
        raise _refused(name, of, str(error.strerror)) from error
    except OSError as error:
        raise CorruptLakeError(f"{path}: cannot be read ({error.strerror}); {of} refers to it, so restore it") from error
    return path


def _check_status(lake: Lake, path: Path) -> None:
    with suppress(FileNotFoundError):
        _refuse_second_name(status_beneath(lake.root, str(path.relative_to(lake.root))), path)


def _opened(lake: Lake, name: str) -> BinaryIO:
    file = binary_beneath(lake.root, name)
    try:
        _refuse_second_name(os.fstat(file.fileno()), lake.root / name)
    except BaseException:
        file.close()
        raise
    return file


def _refuse_second_name(seen: os.stat_result, path: Path) -> None:
    """Refuse a second name of a private file where somebody else than its owner could have made it.

    Second names as such are in use: objects that a backfill shares, backups made by hard links.

    Raises:
        RefusedFileError: it is one.
    """
    if seen.st_nlink < 2 or stat.S_IMODE(seen.st_mode) & (stat.S_IRWXG | stat.S_IRWXO):
        return
    folder = path.parent.stat()
    if seen.st_uid != folder.st_uid or stat.S_IMODE(folder.st_mode) & (stat.S_IWGRP | stat.S_IWOTH):
        raise RefusedFileError(IS_SECOND_NAME, path)


def table_path(lake: Lake, table: str, path: object, *, fetch: bool = True) -> Path:
    """The path of a data file that a table's log names. Raises as `referred_path`."""
    of = f"the log of {table}"
    return referred_path(lake, f"{table}/{checked_name(path, of)}", of, fetch=fetch)


def check_table_files(lake: Lake, name: str, table: DeltaTable) -> None:
    """Refuse a table of which a data file is a link: its library would follow it. What a bucket holds has no links.

    Raises:
        BadReferenceError: one is.
        CorruptLakeError: the table's folder cannot be read.
    """
    of = f"the log of {name}"
    paths = pa.table(table.get_add_actions(flatten=True)).column("path").to_pylist()
    try:
        lake.store.check_plain(name, (checked_name(path, of) for path in paths))
    except RefusedFileError as error:
        raise _refused(error.filename, of, str(error.strerror)) from error
    except OSError as error:
        raise CorruptLakeError(f"{lake.root / name}: cannot be read ({error.strerror}); restore it") from error


def read_footer(lake: Lake, name: str, of: str) -> pq.FileMetaData:
    """The footer of a Parquet file of the lake; of a file that is not here nothing else is fetched.

    Args:
        lake: the lake.
        name: path of the file.
        of: what names it, for the message.

    Raises:
        BadReferenceError: the name leads out of the lake or through a link, or it is not a plain file.
        CorruptLakeError: the file is missing or cannot be read.
        RetryLaterError: the storage is unavailable.
    """
    checked = checked_name(name, of)
    if lake.store.has_local(checked):
        with open_referred(lake, checked, of) as file:
            return pq.read_metadata(file)
    size = lake.store.size(checked)
    if size is None:
        raise CorruptLakeError(f"{lake.root / checked}: is gone, and {of} refers to it; restore it")
    length = int.from_bytes(lake.store.read_part(checked, size - _FOOTER_END_BYTES, 4), "little") + _FOOTER_END_BYTES
    return pq.read_metadata(pa.BufferReader(_MAGIC + lake.store.read_part(checked, size - length, length)))


def _refused(name: object, of: str, reason: str) -> BadReferenceError:
    shown = repr(name)[:_SHOWN]
    return BadReferenceError(
        f"{of}: refers to {shown}, which is {reason}; only plain files of the lake are read; restore the row or leave it out"
    )
