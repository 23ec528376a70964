"""A file through the documented way: drafted contract, compiled for the agent, replayed, encoded, judged by the core."""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from catchment.runtime.clock import SystemClock
from edge_agent.capture.encode import BatchLimits, Encoder
from edge_agent.errors import SourceEndedError
from edge_agent.sources.registry import build_source
from pipelines.contracts.check import conform, reasons
from pipelines.contracts.infer import draft_contract
from pipelines.contracts.odcs import load_odcs, to_odcs
from schemas.contract import Contract, decode_contract, encode_contract


@dataclass
class Admitted:
    """What became of a file."""

    contract: Contract
    rows: pa.Table | None
    refused: Counter[str]
    rejected: dict[str, int]
    left_out: tuple[str, ...]
    unfilled: tuple[str, ...]

    @property
    def count(self) -> int:
        return 0 if self.rows is None else self.rows.num_rows

    def column(self, name: str) -> list[Any]:
        assert self.rows is not None
        return list(self.rows[name].to_pylist())


def drafted(path: Path, folder: Path, name: str = "drafted") -> Contract:
    """The contract as a device gets it: drafted, written as YAML, read, compiled, read again."""
    document = folder / f"{name}.odcs.yaml"
    document.write_text(to_odcs(draft_contract(path, name).contract))
    return decode_contract(encode_contract(load_odcs(document)))


def judged(path: Path, contract: Contract, **options: object) -> Admitted:
    """Every row of a file through the agent's replay and the core's checks."""
    source = build_source("replay", {"path": str(path), **options}, contract, SystemClock(), None)
    encoder = Encoder(contract, BatchLimits(1 << 20, 1 << 20), lambda _: None)  # type: ignore[arg-type,return-value]
    tables: list[pa.Table] = []
    refused: Counter[str] = Counter()
    while True:
        try:
            batch = source.read(1_000)
        except SourceEndedError:
            break
        for envelope in () if batch is None else encoder.encode(batch, 0):
            rows = conform(pa.ipc.open_stream(io.BytesIO(envelope.body)).read_all(), contract)
            refused.update(reason for reason in reasons(rows, contract).to_pylist() if reason is not None)
            tables.append(rows)
    found = Admitted(
        contract, pa.concat_tables(tables) if tables else None, refused, source.rejected, source.left_out, source.unfilled
    )
    source.close()
    return found
