"""The messages between a parent and its child: one byte of kind, four of length, then the body."""

import struct

HEAD = struct.Struct("<cI")
MAX_FRAME_BYTES = (1 << 32) - 1
REQUEST, ANSWER, REFUSED, NOTE, READY, NO_MEMORY = b"q", b"a", b"e", b"n", b"r", b"m"
MAX_NOTE_BYTES = 256
MAX_REASON_CHARS = 500


def encode_refusal(error: BaseException) -> bytes:
    """Class name and message of an exception, on one line each."""
    message = " ".join(str(error).split())[:MAX_REASON_CHARS]
    return f"{type(error).__name__}\n{message}".encode("utf-8", "replace")


def decode_refusal(body: bytes) -> tuple[str, str]:
    """Class name and message; the child may have sent anything."""
    kind, _, reason = body.decode("utf-8", "replace").partition("\n")
    return kind[:80], reason[:MAX_REASON_CHARS]
