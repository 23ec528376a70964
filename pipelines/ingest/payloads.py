"""Payloads of a group: hashes checked, bytes into a shard that is read with one pread, large ones looked up."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from catchment.runtime.beneath import status_beneath
from pipelines.errors import BadReferenceError
from pipelines.ingest.quarantine import STAGE_OBJECT, STAGE_PAYLOAD
from pipelines.lake.lake import Lake
from pipelines.lake.layout import PAYLOAD, object_name
from pipelines.lake.payload import write_payload_shard
from pipelines.lake.reference import referred_path
from schemas.contract import PayloadSpec
from schemas.envelope import PAYLOAD_SHA256

REFERENCE_FIELDS = (
    pa.field("payload_shard", pa.string()),
    pa.field("payload_row", pa.int32()),
    pa.field("payload_offset", pa.int64()),
    pa.field("payload_length", pa.int64()),
)


def check_payloads(lake: Lake, rows: pa.Table, spec: PayloadSpec) -> tuple[pa.StringArray, pa.StringArray]:
    """Compare each payload with its hash; for one that travelled as parts, ask whether it is there and not too large.

    Returns:
        Per row, the stage and the reason to refuse it; both null where there is none.
    """
    stages: list[str | None] = []
    reasons: list[str | None] = []
    for value, digest in zip(_values(rows), rows.column(PAYLOAD_SHA256).to_pylist(), strict=True):
        stage, reason = STAGE_OBJECT, None
        if value is not None:
            actual = hashlib.sha256(value).hexdigest()
            stage, reason = STAGE_PAYLOAD, None if actual == digest else f"payload_sha256: the payload's is {actual}"
        elif digest is not None:
            reason = _object_fault(lake, digest, spec.max_bytes)
        stages.append(stage)
        reasons.append(reason)
    return pa.array(stages, pa.string()), pa.array(reasons, pa.string())


def store_payloads(lake: Lake, stream: str, name: str, keyed: pa.Table) -> list[pa.Array]:
    """Write the payloads of rows and return their reference columns, in the order of `REFERENCE_FIELDS`.

    Args:
        lake: the lake.
        stream: the stream's name.
        name: the shard's file name, derived from the plan.
        keyed: columns device, epoch, seq, payload_sha256, payload.
    """
    inline = np.asarray(pc.is_valid(keyed.column("payload")).to_numpy(zero_copy_only=False), np.bool_)
    shards = np.full(keyed.num_rows, None, object)
    places, offsets, lengths = (np.zeros(keyed.num_rows, np.int64) for _ in range(3))
    known = inline.copy()
    if inline.any():
        path = f"{PAYLOAD}/{stream}/{name}"
        shard = write_payload_shard(lake.root / path, keyed.filter(pa.array(inline)))
        shards[inline] = path
        places[inline] = np.arange(shard.rows)
        offsets[inline], lengths[inline] = shard.offsets.to_numpy(), shard.lengths.to_numpy()
    digests = keyed.column(PAYLOAD_SHA256)
    for row in np.flatnonzero(~inline).tolist():
        digest = digests[row].as_py()
        if digest is not None:
            shards[row] = object_name(digest)
            lengths[row] = status_beneath(lake.root, object_name(digest)).st_size
            known[row] = True
    return [
        pa.array(shards.tolist(), pa.string()),
        pa.array(places.astype(np.int32), mask=~inline),
        pa.array(offsets, mask=~known),
        pa.array(lengths, mask=~known),
    ]


def _object_fault(lake: Lake, digest: str, max_bytes: int) -> str | None:
    name = object_name(digest)
    try:
        path = referred_path(lake, name, "a sample")
        size = path.stat(follow_symlinks=False).st_size
    except BadReferenceError as error:
        return f"payload_sha256: {error}"
    except FileNotFoundError:
        return f"payload_sha256: no payload came with the sample, and {name} is not in the lake"
    return f"payload: {size} bytes are above the contract's {max_bytes}" if size > max_bytes else None


def _values(rows: pa.Table) -> Sequence[pa.Buffer | None]:
    return [value.as_buffer() if value.is_valid else None for chunk in rows.column("payload").chunks for value in chunk]
