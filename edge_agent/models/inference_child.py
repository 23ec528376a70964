"""The target of the model's process: loads a model, answers requests. See `catchment.runtime.worker.child`."""

from collections.abc import Callable
from pathlib import Path

import msgspec

from edge_agent.models.inference import Classifier
from edge_agent.models.inference_messages import DECODED, GoldenRequest, LoadOptions, Request


def open_classifier(options: bytes, note: Callable[[bytes], None]) -> Callable[[bytes], bytes]:
    """Load the model that the options name.

    Raises:
        ModelUnfitError: it does not load.
        MemoryError: it needs more than the process may have.
    """
    given = msgspec.msgpack.decode(options, type=LoadOptions)
    classifier = Classifier(Path(given.path), given.spec, given.labels)

    def handle(body: bytes) -> bytes:
        request = msgspec.msgpack.decode(body, type=Request)
        if isinstance(request, GoldenRequest):
            return msgspec.msgpack.encode(classifier.answers_to_golden())
        tensor = classifier.tensor(Path(request.path) if request.path else request.body)
        note(DECODED)
        return msgspec.msgpack.encode(classifier.predict(tensor))

    return handle
