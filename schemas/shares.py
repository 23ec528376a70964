"""Share notices: the core's word to a device that it sends more than its share, and when to go on.

What a device sends over its share is not landed and not settled: it keeps it, as it keeps all that has no receipt.
"""

import msgspec

from schemas.errors import SchemaError
from schemas.ids import encode_json

MAX_NOTICE_BYTES = 64 * 1024
MAX_WAIT_MS = 600_000
_MAX_TEXT_CHARS = 500


class ShareNotice(msgspec.Struct, frozen=True):
    """The share that a device exceeds, and what to do.

    Attributes:
        limit: bytes, messages, streams or disk.
        reason: the same as a sentence.
        wait_ms: send nothing for so long; 0: go on.
        bytes_per_s: what may be sent on average from then on; 0: no limit of its own.
        deferred: messages that were not landed since the device went over its share.
    """

    limit: str
    reason: str
    wait_ms: int = 0
    bytes_per_s: int = 0
    deferred: int = 0


def encode_share_notice(notice: ShareNotice) -> bytes:
    """The JSON bytes to publish."""
    return encode_json(notice)


def decode_share_notice(body: bytes) -> ShareNotice:
    """Read a notice; a longer wait than `MAX_WAIT_MS` is shortened, and long texts are cut.

    Raises:
        SchemaError: not a notice, or too large.
    """
    if len(body) > MAX_NOTICE_BYTES:
        raise SchemaError(f"share notice of {len(body)} bytes is above the limit of {MAX_NOTICE_BYTES}")
    try:
        notice = msgspec.json.decode(body, type=ShareNotice)
    except msgspec.MsgspecError as error:
        raise SchemaError(f"not a share notice: {error}") from error
    return ShareNotice(
        notice.limit[:_MAX_TEXT_CHARS],
        notice.reason[:_MAX_TEXT_CHARS],
        min(max(notice.wait_ms, 0), MAX_WAIT_MS),
        max(notice.bytes_per_s, 0),
        max(notice.deferred, 0),
    )
