"""One member of the crew: reads work items from its standard input and answers on its standard output, until that ends.

Whatever else is printed goes to standard error. Nothing here may import Beam: a member must be warm in a moment.
"""

import ctypes
import os
import signal
import sys

import msgspec

from pipelines.ingest.crew import HEAD, PLACE, RESULT
from pipelines.ingest.outcome import failure_of
from pipelines.ingest.settle import settle_item
from pipelines.ingest.work import ItemResult, Work
from pipelines.logs import log_to_stderr

_PR_SET_PDEATHSIG = 1


def settle_or_fail(work: Work, answer: int | None = None) -> ItemResult:
    """The item's result, or why there is none, as a value.

    Args:
        work: the item.
        answer: where each message is named before it is opened, if the item asks for care.
    """

    def tell(segment: int, message: int) -> None:
        _send(answer, PLACE, msgspec.json.encode((segment, message)))

    try:
        return settle_item(work, tell if work.careful and answer is not None else None)
    except Exception as error:  # noqa: BLE001  # the family is told in the result, whatever it is
        return ItemResult(work.item, (), (), failure_of(error))


def main() -> None:
    """Serve until standard input ends."""
    # Ctrl-C and an init system's SIGTERM reach the whole group: the loop decides when a member ends, by closing its input.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    answer = os.dup(1)
    os.dup2(2, 1)
    log_to_stderr()
    source = sys.stdin.buffer
    while head := source.read(HEAD.size):
        _kind, size = HEAD.unpack(head)
        work = msgspec.json.decode(source.read(size), type=Work)
        _send(answer, RESULT, msgspec.json.encode(settle_or_fail(work, answer)))


def _send(descriptor: int | None, kind: bytes, body: bytes) -> None:
    assert descriptor is not None
    frame = memoryview(HEAD.pack(kind, len(body)) + body)
    while frame:
        frame = frame[os.write(descriptor, frame) :]


if __name__ == "__main__":
    main()
