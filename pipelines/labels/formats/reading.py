"""What readers of label files share: files of a bounded size, JSON of a known shape, and the pictures' names."""

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TypeVar
from xml.etree import ElementTree as ET

import msgspec

from pipelines.errors import NotFoundError, RefusedError
from pipelines.labels.drawn import MAX_FILE_BYTES, Drawn, LabelTask

T = TypeVar("T")


def read_body(path: Path) -> bytes:
    """The bytes of a file.

    Raises:
        NotFoundError: there is none.
        RefusedError: it is too large or cannot be read.
    """
    try:
        with path.open("rb") as file:
            body = file.read(MAX_FILE_BYTES + 1)
    except FileNotFoundError as error:
        raise NotFoundError(f"{path}: no such file; give an existing one") from error
    except OSError as error:
        raise RefusedError(f"{path}: cannot be read ({error.strerror})") from error
    if len(body) > MAX_FILE_BYTES:
        raise RefusedError(f"{path}: larger than {MAX_FILE_BYTES:,} bytes; split it")
    return body


def read_json(path: Path, kind: type[T]) -> T:
    """A JSON document of a known shape; unknown keys are skipped.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it is of another shape; the message names the field.
    """
    try:
        return msgspec.json.decode(read_body(path), type=kind)
    except RecursionError as error:
        raise RefusedError(f"{path}: nested too deep for a file of labels") from error
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise RefusedError(f"{path}: not what this format has: {error}; name another format (--as)") from error


def read_xml(path: Path) -> ET.Element:
    """An XML document without a DOCTYPE.

    Raises:
        NotFoundError: there is no such file.
        RefusedError: it is not XML, or it declares a document type.
    """
    body = read_body(path)
    if b"<!DOCTYPE" in body or b"<!ENTITY" in body:
        raise RefusedError(f"{path}: declares a document type, which no labelling tool needs; remove it")
    try:
        return ET.fromstring(body)  # noqa: S314 - see above
    except ET.ParseError as error:
        raise RefusedError(f"{path}: not XML: {error}") from error


def files_of(path: Path, suffix: str) -> Iterator[Path]:
    """The file itself, or the files of a folder and the folders below with this suffix, by name.

    Raises:
        NotFoundError: there is none.
    """
    found = sorted(path.rglob(f"*{suffix}")) if path.is_dir() else [path]
    if not found or not path.exists():
        raise NotFoundError(f"{path}: no {suffix} files there; give a file or a folder of them")
    yield from found


def shapes_of(task: LabelTask, kinds: Sequence[str], losses: Counter[str]) -> list[Drawn]:
    """The labels of a task that a format can say; the others are counted."""
    losses.update(f"{label.kind} labels, which the format does not know" for label in task.labels if label.kind not in kinds)
    return [label for label in task.labels if label.kind in kinds]
