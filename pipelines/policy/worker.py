"""The target of the process that judges rows by risky policies. See `catchment.runtime.worker.child`.

Stands alone because the limited process imports it and nothing more.
"""

import struct
from collections.abc import Callable, Sequence

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.policy.engine import Tagger
from schemas.contract import Contract, decode_contract, encode_contract
from schemas.policy import Policy

_INDEX = struct.Struct("<I")


class _Options(msgspec.Struct, frozen=True):
    contract: bytes
    policies: tuple[Policy, ...]


def encode_options(contract: Contract, policies: Sequence[Policy]) -> bytes:
    """Encode the options of the process: the contract and the policies it judges by."""
    return msgspec.msgpack.encode(_Options(encode_contract(contract), tuple(policies)))


def encode_request(index: int, table: pa.Table) -> bytes:
    """A request: the policy's number, and the columns that it reads."""
    sink = pa.BufferOutputStream()
    sink.write(_INDEX.pack(index))
    with pa.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    body: bytes = sink.getvalue().to_pybytes()
    return body


def open_judge(options: bytes, _note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Compile the policies; a request is answered with the packed verdicts of one of them."""
    given = msgspec.msgpack.decode(options, type=_Options)
    contract = decode_contract(given.contract)
    taggers = [Tagger.compile([policy], contract) for policy in given.policies]

    def judge(request: bytes) -> bytes:
        (index,) = _INDEX.unpack_from(request)
        table = pa.ipc.open_stream(pa.py_buffer(request).slice(_INDEX.size)).read_all()
        hits = taggers[index].verdicts(table)
        return np.packbits(np.stack(hits)).tobytes() if hits else b""

    return judge
