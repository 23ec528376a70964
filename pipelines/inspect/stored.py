"""Read the payloads of rows: in the table itself while a run writes it, in shards and objects afterwards."""

import os
from typing import Any

import pyarrow as pa

from pipelines.contracts.arrow import private_columns
from pipelines.errors import ConfigError
from pipelines.inspect.columns import step_columns
from pipelines.inspect.run import Payloads, inspect_rows
from pipelines.lake.lake import Lake
from pipelines.lake.layout import object_name
from pipelines.lake.reference import open_referred
from schemas.contract import Contract
from schemas.envelope import PAYLOAD, PAYLOAD_SHA256
from schemas.policy import InspectStep

MAX_INSPECTED_BYTES = 1024 * 1024 * 1024
_REFERENCES = ("payload_shard", "payload_row", "payload_offset", "payload_length", PAYLOAD_SHA256)
_KEY = ("device", "epoch", "seq")


def fresh_payloads(lake: Lake | None, rows: pa.Table) -> Payloads:
    """The payloads of rows that a run is about to write: in the table, or, of those that travelled in parts, under objects/."""
    if PAYLOAD not in rows.column_names:
        return lambda _place: None
    bodies, digests = rows.column(PAYLOAD), rows.column(PAYLOAD_SHA256)

    def payload(place: int) -> bytes | None:
        body: bytes | None = bodies[place].as_py()
        digest = digests[place].as_py()
        if body is not None or digest is None:
            return body
        if lake is None:
            raise ConfigError(f"the row with payload_sha256 {digest}: its payload lies in a lake; give rows with their payloads")
        with open_referred(lake, object_name(digest), f"the row with payload_sha256 {digest}") as file:
            return file.read() if os.fstat(file.fileno()).st_size <= MAX_INSPECTED_BYTES else None

    return payload


def committed_payloads(lake: Lake, rows: pa.Table) -> Payloads:
    """The payloads of rows that are in the lake: one pread each.

    Raises:
        CorruptLakeError: by the function that it gives: a payload is gone.
    """
    if "payload_shard" not in rows.column_names:
        return lambda _place: None
    references = [rows.column(name) for name in _REFERENCES]
    keys = [rows.column(name) for name in _KEY if name in rows.column_names]

    def payload(place: int) -> bytes | None:
        shard, row, offset, length, _digest = (column[place].as_py() for column in references)
        if shard is None or not length or length > MAX_INSPECTED_BYTES:
            return None
        sample = "/".join(str(column[place].as_py()) for column in keys)
        return lake.view().payload(shard, offset or 0, length, row or 0, f"sample {sample}")

    return payload


class StoredInspector:
    """Fills in the inspected columns of rows that were committed before there was a step for them.

    Args:
        lake: the lake.
        contract: the stream's own contract.
        steps: what to compute.
    """

    def __init__(self, lake: Lake, contract: Contract, steps: tuple[InspectStep, ...]) -> None:
        self._lake, self._contract, self._steps = lake, contract, steps

    @property
    def columns(self) -> frozenset[str]:
        """The columns that it needs: a row's key, its payload's place, the columns that a step reads and those it gives."""
        if not self._steps:
            return frozenset()
        own = {column.name for column in self._contract.columns}
        given = {column.name for step in self._steps for column in step_columns(step)}
        return frozenset({*_KEY, *_REFERENCES, *own, *given})

    def fill(self, rows: pa.Table) -> pa.Table:
        """The rows with every step's columns."""
        waiting = [step for step in self._steps if not _is_filled(rows, step)]
        if not waiting:
            return rows
        return inspect_rows(self._lake, rows, waiting, committed_payloads(self._lake, rows), private_columns(self._contract))


def _is_filled(rows: pa.Table, step: InspectStep) -> bool:
    first: Any = step_columns(step)[0].name
    return first in rows.column_names and rows.column(first).null_count == 0
