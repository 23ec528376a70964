"""A batch made harmless as its contract says, row by row only where a picture asks for it; what cannot be is dropped, counted."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from edge_agent.errors import ConfigError
from edge_agent.pictures.process import HarmfulPictureError, PictureProcess, shared_pictures
from edge_agent.redaction.cells import Redactor, UnredactableError, cut_time, redactor
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from schemas.contract import Contract


class BatchRedactor:
    """Redacts the batches of one stream.

    Args:
        contract: what must be done.
        key: of the keyed hash; empty where the device has none.
        rejects: where rows are counted that cannot be redacted.

    Raises:
        ConfigError: the contract asks for a keyed hash and there is no key, or for pictures and pillow is not installed.
    """

    def __init__(self, contract: Contract, key: bytes, rejects: Rejects) -> None:
        self._contract = contract
        self._rejects = rejects
        every = [inner for column in contract.columns for inner in (column, *column.fields)]
        if not key and any(column.redact is not None and column.redact.how == "hash" for column in every):
            raise ConfigError(f"contract {contract.name} asks for a keyed hash and there is no key: set `key` under [redaction]")
        found = {column.name: redactor(column, key) for column in contract.columns}
        self._cells = {name: one for name, one in found.items() if one is not None}
        self._image = contract.payload.redact if contract.payload is not None else None
        self._decoder = None if self._image is None else _pictures(contract)

    def __call__(self, batch: SampleBatch) -> SampleBatch:
        """The batch without what must not leave the device: fewer rows where some cannot be redacted."""
        refused: set[int] = set()
        columns = {
            name: self._column(values, self._cells[name], refused) if name in self._cells else values
            for name, values in batch.columns.items()
        }
        payloads = batch.payloads
        if self._decoder is not None and payloads is not None:
            payloads = self._redacted(batch, payloads, refused)
        times = batch.event_time_us
        if self._contract.event_time_step_s is not None:
            step_s = self._contract.event_time_step_s
            times = [cut_time(time, step_s) for time in times]
        done = replace(batch, event_time_us=times, columns=columns, payloads=payloads)
        return done if not refused else done.take([row for row in range(len(batch)) if row not in refused])

    def _column(self, values: Sequence[Scalar], redact: Redactor, refused: set[int]) -> Sequence[Scalar]:
        out: list[Scalar] = []
        for row, value in enumerate(values):
            try:
                out.append(redact(value))
            except UnredactableError as error:
                self._refuse(row, str(error), refused)
                out.append(None)
            except (ValueError, TypeError, OverflowError) as error:
                self._refuse(row, type(error).__name__, refused)  # its message may quote the value
                out.append(None)
        return out

    def _redacted(
        self, batch: SampleBatch, payloads: Sequence[bytes | Path | None], refused: set[int]
    ) -> list[bytes | Path | None]:
        assert self._decoder is not None
        assert self._image is not None
        regions = batch.columns.get(self._image.column, [None] * len(batch))
        out: list[bytes | Path | None] = []
        for row, payload in enumerate(payloads):
            try:
                if payload is None or row in refused:
                    out.append(None)
                else:
                    out.append(self._decoder.redact(self._image, payload, regions[row]))
            except HarmfulPictureError as error:
                self._refuse(row, str(error), refused)
                out.append(None)
        return out

    def _refuse(self, row: int, reason: str, refused: set[int]) -> None:
        if row not in refused:
            refused.add(row)
            # The example is left out: a log must not hold what was not to be stored.
            self._rejects.count(f"row: cannot be redacted: {reason}")


def _pictures(contract: Contract) -> PictureProcess:
    try:
        return shared_pictures("redact")
    except ConfigError as error:
        raise ConfigError(
            f"contract {contract.name} asks for regions of pictures to be hidden: install catchment[redact] (pillow); {error}"
        ) from error
