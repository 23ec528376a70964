"""The child process that cuts slides: foreign bytes are decoded here alone, under limits, and take no run loop along."""

from typing import TYPE_CHECKING

import msgspec

from pipelines.imaging.work import cut_slide, decode_task, save_result

if TYPE_CHECKING:
    from catchment.runtime.worker.child import Handler, Note


def open_cutter(_options: bytes, note: "Note") -> "Handler":
    """The handler of requests: a slide's task in, what became of it out; each band is told with a note."""

    def handle(body: bytes) -> bytes:
        task = decode_task(body)
        result = cut_slide(task, lambda text: note(text.encode()))
        save_result(task, result)
        return msgspec.json.encode(result, enc_hook=str)

    return handle
