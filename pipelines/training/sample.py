"""One sample of a training set, as a reader hands it over."""

from typing import Any, Protocol


class RowSource(Protocol):
    """Where a sample's columns are looked up."""

    def row(self, index: int) -> dict[str, Any]:
        """All columns of a row as Python values."""
        ...

    def value(self, index: int, column: str) -> Any:
        """One column of a row."""
        ...


class _OwnRow:
    """The columns of one sample that left its process."""

    __slots__ = ("columns",)

    def __init__(self, columns: dict[str, Any]) -> None:
        self.columns = columns

    def row(self, index: int) -> dict[str, Any]:  # noqa: ARG002 - there is one row
        return dict(self.columns)

    def value(self, index: int, column: str) -> Any:  # noqa: ARG002 - likewise
        return self.columns[column]


class Sample:
    """One sample: its payload (None in a tabular set), and its columns, looked up when asked for.

    Pickled, it takes along its own columns and nothing of the set, so it is cheap to send to another process. It is a plain
    class with slots, because millions of them are made in an epoch: a frozen dataclass takes three times as long to make.
    """

    __slots__ = ("_rows", "index", "payload")

    def __init__(self, index: int, payload: bytes | None, rows: RowSource) -> None:
        self.index = index
        self.payload = payload
        self._rows = rows

    @property
    def columns(self) -> dict[str, Any]:
        """All columns of the row as Python values."""
        return self._rows.row(self.index)

    def __getitem__(self, column: str) -> Any:
        return self._rows.value(self.index, column)

    def __reduce__(self) -> tuple[type["Sample"], tuple[int, bytes | None, _OwnRow]]:
        return Sample, (self.index, self.payload, _OwnRow(self.columns))

    def __repr__(self) -> str:
        return f"<Sample {self.index}: {len(self.payload):,} bytes>" if self.payload is not None else f"<Sample {self.index}>"
