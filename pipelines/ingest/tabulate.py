"""Turn groups of envelopes into rows of a stream's table: conform, check, payloads, tags, one file. Whole columns at a time.

Hashes of payloads are checked; their bytes go into a shard that is read with one pread, large ones are looked up. The bytes
that each row holds are counted, too.
"""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as pt

from catchment.runtime.beneath import status_beneath
from pipelines.contracts.arrow import private_columns, table_schema
from pipelines.contracts.check import ContractMismatchError, conform, reasons
from pipelines.errors import BadReferenceError
from pipelines.ingest.messages import Group, GroupEnvelope, Keys, body_table, fresh_mask, in_order, row_keys, spans_of, take_text
from pipelines.ingest.plan import Pins
from pipelines.ingest.quarantine import BODY_ARROW, STAGE_CONTRACT, STAGE_OBJECT, STAGE_PAYLOAD, Rejection
from pipelines.ingest.work import Limits
from pipelines.inspect.columns import steps_of
from pipelines.inspect.run import inspect_rows
from pipelines.inspect.stored import fresh_payloads
from pipelines.inspect.suspended import SuspensionBook
from pipelines.labels.rule_columns import LabelColumns
from pipelines.lake.files import NewFile, write_table_file
from pipelines.lake.lake import Lake
from pipelines.lake.layout import PAYLOAD, object_name, stream_table
from pipelines.lake.payload import write_payload_shard
from pipelines.lake.reference import referred_path
from pipelines.policy.guard import SandboxedTagger
from schemas.contract import Contract, PayloadSpec
from schemas.envelope import PAYLOAD_SHA256
from schemas.policy import Policy

REFERENCE_FIELDS = (
    pa.field("payload_shard", pa.string()),
    pa.field("payload_row", pa.int32()),
    pa.field("payload_offset", pa.int64()),
    pa.field("payload_length", pa.int64()),
)

Int64s = npt.NDArray[np.int64]


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


@dataclass(frozen=True, slots=True)
class Target:
    """The target of rows: the lake, the run, the file name that the plan gives, and the rules."""

    lake: Lake
    run: int
    name: str
    pins: Pins
    limits: Limits


@dataclass(slots=True)
class Written:
    """The files and rejections that some groups became."""

    files: list[NewFile] = field(default_factory=list)
    rejections: list[Rejection] = field(default_factory=list)
    committed: Counter[tuple[str, str]] = field(default_factory=Counter)


@dataclass(frozen=True, slots=True)
class _Checked:
    """Rows that fit their contract, still with payloads, and where each came from."""

    rows: pa.Table
    keys: Keys
    envelopes: Sequence[GroupEnvelope]


def write_group(groups: Sequence[Group], target: Target) -> Written:
    """Write groups of one stream and contract version as one file, and say what was refused.

    Raises:
        OSError: the disk refused.
    """
    written = Written()
    contract = groups[0].contract
    parts: list[pa.Table] = []
    for group in map(in_order, groups):
        for checked in filter(_has_rows, _checked(group, target, written)):
            parts.append(_keyed(checked, contract, target.run))
            _count(checked, contract.name, written)
    if not parts:
        return written
    rows = pa.concat_tables(parts).unify_dictionaries()
    steps = steps_of(target.pins.policies, contract.name)
    private = private_columns(*(each for each in target.pins.contracts if each.name == contract.name))
    if steps or contract.payload is not None:
        rows = _with_device_in_words(rows)
        rows = inspect_rows(target.lake, rows, steps, fresh_payloads(target.lake, rows), private)
    if contract.payload is not None:
        rows = _with_references(rows, contract, target)
    rows = _with_tags(rows, contract, target)
    rows = rows.select(table_schema(contract).names)
    written.files.append(write_table_file(target.lake, stream_table(contract.name), target.name, rows, private))
    return written


def _has_rows(checked: _Checked) -> bool:
    return bool(checked.rows.num_rows)


def _checked(group: Group, target: Target, written: Written) -> list[_Checked]:
    try:
        return [_check(group.envelopes, group.contract, target, written)]
    except ContractMismatchError as error:
        if len(group.envelopes) > 1:
            # One value that does not fit refuses the whole cast: judge each envelope alone, so that only its own is refused.
            alone = [Group(group.contract, [envelope]) for envelope in group.envelopes]
            return [checked for single in alone for checked in _checked(single, target, written)]
        message, _rows, fresh_spans = group.envelopes[0]
        keys = row_keys(group.envelopes)
        fresh = fresh_mask(group.envelopes, keys)
        count = len(keys.seq) if fresh is None else int(fresh.sum())
        if count:
            spans = spans_of(keys.seq if fresh is None else keys.seq[fresh])
            written.rejections.append(message.rejected(STAGE_CONTRACT, str(error), fresh_spans[0][0], count, spans))
        return []


def _check(envelopes: Sequence[GroupEnvelope], contract: Contract, target: Target, written: Written) -> _Checked:
    rows, keys = conform(body_table(envelopes), contract), row_keys(envelopes)
    fresh = fresh_mask(envelopes, keys)
    if fresh is not None:
        rows, keys = rows.filter(pa.array(fresh)), keys.where(fresh)
    checked = _Checked(rows.combine_chunks(), keys, envelopes)
    too_large = refusals(checked.rows, target.limits.max_row_bytes)
    if too_large is not None:
        checked = _accepted(checked, too_large, None, written)
    checked = _accepted(checked, reasons(checked.rows, contract), None, written)
    if contract.payload is None or not checked.rows.num_rows:
        return checked
    stages, found = check_payloads(target.lake, checked.rows, contract.payload)
    return _accepted(checked, found, stages, written)


def _accepted(checked: _Checked, found: pa.StringArray, stages: pa.StringArray | None, written: Written) -> _Checked:
    """The rows without a reason; the others become rejections, one per envelope and reason. No stages: the contract's."""
    if found.null_count == len(found):
        return checked
    refused = np.asarray(found.is_valid().to_numpy(zero_copy_only=False), np.bool_)
    rows, keys = checked.rows.filter(pa.array(refused)), checked.keys.where(refused)
    named = found.filter(pa.array(refused)).dictionary_encode()
    order = np.lexsort((keys.seq, named.indices.to_numpy(), keys.envelope))
    at = stages.filter(pa.array(refused)).take(pa.array(order)) if stages is not None else None
    rows = rows.append_column("seq", pa.array(keys.seq)).take(pa.array(order))
    owners, codes = keys.envelope[order], named.indices.to_numpy()[order]
    starts = np.flatnonzero(np.concatenate(([True], (np.diff(owners) != 0) | (np.diff(codes) != 0))))
    for low, high in zip(starts.tolist(), [*starts[1:].tolist(), len(order)], strict=True):
        piece = rows.slice(low, high - low)
        origin = checked.envelopes[int(owners[low])].message.origin()
        reason = named.dictionary[int(codes[low])].as_py()
        spans = spans_of(keys.seq[order[low:high]])
        stage = STAGE_CONTRACT if at is None else at[low].as_py()
        written.rejections.append(Rejection(origin, stage, reason, spans[0][0], high - low, _ipc(piece), BODY_ARROW, spans))
    kept = ~refused
    return _Checked(checked.rows.filter(pa.array(kept)), checked.keys.where(kept), checked.envelopes)


def _ipc(rows: pa.Table) -> bytes:
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, rows.schema) as writer:
        writer.write_table(rows)
    return bytes(sink.getvalue().to_pybytes())


def _keyed(checked: _Checked, contract: Contract, run: int) -> pa.Table:
    """The rows next to their keys and times; text that repeats as codes, so that the file's writer need not look at it."""
    heads = [envelope.message for envelope in checked.envelopes]
    owner, count = checked.keys.envelope, checked.rows.num_rows
    epochs = np.array([head.epoch for head in heads], np.int64)[owner]
    received = np.array([head.received_us for head in heads], np.int64)[owner]
    keys = {
        "device": take_text([head.device for head in heads], owner),
        "epoch": pa.array(epochs),
        "seq": pa.array(checked.keys.seq),
        "received_at": pa.array(received).cast(pa.timestamp("us", "UTC")),
        "run": pa.repeat(pa.scalar(run, pa.int64()), count),
        "contract_version": pa.DictionaryArray.from_arrays(pa.repeat(pa.scalar(0, pa.int8()), count), [contract.version]),
    }
    columns = [*keys.values(), *checked.rows.columns]
    return pa.table(columns, names=[*keys, *checked.rows.column_names])


def _with_device_in_words(rows: pa.Table) -> pa.Table:
    place = rows.schema.get_field_index("device")
    return rows.set_column(place, "device", rows.column(place).cast(pa.string()))


def _with_references(rows: pa.Table, contract: Contract, target: Target) -> pa.Table:
    keyed = rows.select(["device", "epoch", "seq", "payload_sha256", "payload"])
    references = store_payloads(target.lake, contract.name, target.name, keyed)
    narrow = rows.drop_columns(["payload"])
    for reference, column in zip(REFERENCE_FIELDS, references, strict=True):
        narrow = narrow.append_column(reference, column)
    return narrow


def _with_tags(rows: pa.Table, contract: Contract, target: Target) -> pa.Table:
    tagger = kept_tagger(target.lake, msgspec.json.encode(target.pins.policies), contract)
    labels = LabelColumns(target.lake, contract.name, tagger.columns, target.pins.labels)
    judged = _with_device_in_words(rows) if "device" in tagger.columns else rows
    tags, tag_rules = tagger.coded(labels.fill(judged))
    return rows.append_column("tags", tags).append_column("tag_rules", tag_rules)


def _count(checked: _Checked, stream: str, written: Written) -> None:
    per_envelope = np.bincount(checked.keys.envelope, minlength=len(checked.envelopes))
    for envelope, count in zip(checked.envelopes, per_envelope.tolist(), strict=True):
        if count:
            written.committed[envelope.message.device or "", stream] += count


@lru_cache(maxsize=64)
def kept_tagger(lake: Lake, policies: bytes, contract: Contract) -> SandboxedTagger:
    """The tagger of these policies, compiled once in this process."""
    # By their JSON: a policy's examples are mappings, so a policy itself has no hash.
    given = msgspec.json.decode(policies, type=tuple[Policy, ...])
    return SandboxedTagger.compile(given, contract, book=SuspensionBook(lake))


def row_bytes(rows: pa.Table | pa.RecordBatch) -> Int64s:
    """Bytes of each row's values; a null counts as nothing, a fixed-width value as its width."""
    fixed = sum(column.type.bit_width // 8 for column in rows.columns if pt.is_primitive(column.type))
    total = np.full(rows.num_rows, fixed, np.int64)
    for column in rows.columns:
        if not pt.is_primitive(column.type):
            total += _value_bytes(column)
    return total


def refusals(rows: pa.Table, max_row_bytes: int) -> pa.StringArray | None:
    """For each row the reason to refuse it for its size, null where there is none; None if no row can be too large."""
    if rows.nbytes <= max_row_bytes:
        return None
    sizes = row_bytes(rows)
    large = np.flatnonzero(sizes > max_row_bytes)
    if not len(large):
        return None
    found: Any = np.full(rows.num_rows, None, object)
    found[large] = [f"row: {size} bytes are above the limit of {max_row_bytes}" for size in sizes[large].tolist()]
    return pa.array(found, pa.string())


def _value_bytes(column: Any) -> Int64s:
    type_ = column.type
    if pt.is_dictionary(type_):
        column = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
        sizes = pa.array(_value_bytes(column.dictionary))
        return np.asarray(pc.fill_null(sizes.take(column.indices), 0).to_numpy(zero_copy_only=False), np.int64)
    if _is_view(type_):
        return _view_lengths(column)
    if pt.is_string(type_) or pt.is_binary(type_) or pt.is_large_string(type_) or pt.is_large_binary(type_):
        lengths = [pc.fill_null(pc.binary_length(chunk), 0).cast(pa.int64()) for chunk in _chunks(column)]
        return np.asarray(pa.chunked_array(lengths, pa.int64()).to_numpy(), np.int64)
    width = type_.bit_width // 8 if pt.is_primitive(type_) else column.nbytes // max(1, len(column))
    return np.full(len(column), width, np.int64)


def _chunks(column: Any) -> list[Any]:
    return list(column.chunks) if isinstance(column, pa.ChunkedArray) else [column]


def _view_lengths(column: Any) -> Int64s:
    """From the 16-byte views themselves, whose first four bytes are the length: casting would be the expansion to be avoided."""
    found = [np.empty(0, np.int64)]
    for chunk in _chunks(column):
        views = np.frombuffer(chunk.buffers()[1], np.int32, count=4 * (chunk.offset + len(chunk)))[4 * chunk.offset :: 4]
        valid = np.asarray(chunk.is_valid().to_numpy(zero_copy_only=False), np.bool_)
        found.append(np.where(valid, views, 0).astype(np.int64))
    return np.concatenate(found)


def _is_view(type_: pa.DataType) -> bool:
    return bool(pt.is_string_view(type_) or pt.is_binary_view(type_))
