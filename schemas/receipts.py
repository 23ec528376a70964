"""Receipts: the core's word that samples are settled; and object states: which bytes of a large payload are durable.

A receipt is the whole truth for one device, retained, so that a device that was away for a month needs only the last
one: ``{"run": 42, "settled": {"camera_frame": {"1797…": [[0, 1200]]}}}``. Epochs are text because JSON readers in
other languages hold numbers as doubles.
"""

import re

import msgspec

from schemas.errors import SchemaError
from schemas.ids import MAX_EPOCH, Digest, StreamName
from schemas.ranges import Ranges
from schemas.wire_json import encode_json

MAX_RECEIPT_BYTES = 16 * 1024 * 1024
# One way to write each number: `01` beside `1` would be two entries for one epoch, and `²` is a digit to Unicode.
_EPOCH = re.compile(r"0|[1-9][0-9]{0,18}")


class Receipt(msgspec.Struct, frozen=True, forbid_unknown_fields=False):
    """What is settled for one device after run `run`: stream -> epoch (as text) -> half-open seq ranges."""

    run: int
    settled: dict[str, dict[str, list[tuple[int, int]]]]

    def ranges(self, stream: StreamName, epoch: int) -> Ranges:
        """The settled seqs of one epoch."""
        return Ranges.of(self.settled.get(stream, {}).get(str(epoch), []))


class ObjectState(msgspec.Struct, frozen=True):
    """The core's answer about one large payload: `have` lists the durable byte ranges, `settled` that all is there and true.

    `error` says why a whole payload was refused (the hash differs): the device must send it again from its start.
    `wait_ms`, where there is one, says that the last parts were not taken for want of room, for the `reason` given: the device
    keeps what `have` says, and goes on after so long.
    """

    digest: str
    total: int
    have: list[tuple[int, int]]
    settled: bool = False
    error: str = ""
    wait_ms: int | msgspec.UnsetType = msgspec.UNSET  # absent on the wire where the parts were taken
    reason: str | msgspec.UnsetType = msgspec.UNSET


def encode_receipt(receipt: Receipt) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(receipt)


def decode_receipt(body: bytes) -> Receipt:
    """Read a receipt.

    Raises:
        SchemaError: not a receipt, too large, or a stream name or epoch in it is malformed.
    """
    if len(body) > MAX_RECEIPT_BYTES:
        raise SchemaError(f"receipt of {len(body)} bytes is above the limit of {MAX_RECEIPT_BYTES}")
    try:
        receipt = msgspec.json.decode(body, type=Receipt)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a receipt: {error}") from error
    for stream, epochs in receipt.settled.items():
        StreamName(stream)
        for epoch, spans in epochs.items():
            if not _EPOCH.fullmatch(epoch) or int(epoch) > MAX_EPOCH:
                raise SchemaError(f"receipt for {stream}: epoch {epoch[:40]!r} is not a decimal number below 2^63")
            Ranges.of(spans)
    return receipt


def encode_object_state(state: ObjectState) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(state)


def decode_object_state(body: bytes) -> ObjectState:
    """Read an object state.

    Raises:
        SchemaError: not an object state, or its digest is malformed.
    """
    try:
        state = msgspec.json.decode(body[:MAX_RECEIPT_BYTES], type=ObjectState)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not an object state: {error}") from error
    Digest(state.digest)
    return state
