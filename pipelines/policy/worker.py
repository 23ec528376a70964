"""A process that judges rows by the rules of one policy after another, and may be killed at any moment.

Spoken to over its own pipes: the contract and the policies first, then tables. Run as `python -m pipelines.policy.worker`.

Stands alone because it is the program of a process of its own.
"""

import struct
import sys
from typing import BinaryIO

import msgspec
import numpy as np
import pyarrow as pa

from pipelines.errors import PipelineError
from pipelines.policy.engine import Tagger
from schemas.contract import decode_contract
from schemas.policy import Policy

HEAD = struct.Struct("<cI")
VERDICTS, REFUSED, READY = b"v", b"e", b"r"


def write_frame(pipe: BinaryIO, kind: bytes, body: bytes) -> None:
    """Send one message.

    Raises:
        OSError: the other side is gone.
    """
    pipe.write(HEAD.pack(kind, len(body)))
    pipe.write(body)
    pipe.flush()


def read_frame(pipe: BinaryIO) -> tuple[bytes, bytes]:
    """Wait for one message.

    Raises:
        EOFError: the other side is gone.
    """
    kind, size = HEAD.unpack(_exactly(pipe, HEAD.size))
    return kind, _exactly(pipe, size)


def _exactly(pipe: BinaryIO, size: int) -> bytes:
    body = pipe.read(size)
    if len(body) != size:
        raise EOFError("the other side of the pipe is gone")
    return body


def serve(given: BinaryIO, answers: BinaryIO) -> None:
    """Answer until the other side goes."""
    contract = decode_contract(read_frame(given)[1])
    policies = msgspec.json.decode(read_frame(given)[1], type=tuple[Policy, ...])
    taggers = [Tagger.compile([policy], contract) for policy in policies]
    write_frame(answers, READY, b"")
    while True:
        _, index = read_frame(given)
        _, body = read_frame(given)
        try:
            hits = taggers[int(index)].verdicts(pa.ipc.open_stream(body).read_all())
            write_frame(answers, VERDICTS, np.packbits(np.stack(hits)).tobytes() if hits else b"")
        except (PipelineError, pa.ArrowException) as error:
            write_frame(answers, REFUSED, str(error).encode())


def main() -> None:
    """Serve the pipes of this process."""
    try:
        serve(sys.stdin.buffer, sys.stdout.buffer)
    except EOFError:
        return  # who asked is gone


if __name__ == "__main__":
    main()
