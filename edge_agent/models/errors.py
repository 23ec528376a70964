"""How a model can fail besides being unfit: each says who is to blame, so that nobody else is."""

from edge_agent.errors import ModelError


class UnreadablePictureError(ModelError):
    """Skip this picture: it cannot be decoded, which says nothing about the model."""


class ModelBusyError(ModelError):
    """Go on without a prediction: the model's process is starting, or busy with other pictures."""


class ModelDiedError(ModelError):
    """Start the model's process again: it crashed, ran out of memory or took too long."""


class ModelStoppedError(ModelError):
    """Try again at the next start: the agent is stopping, which says nothing about the model."""


class RottenModelError(ModelError):
    """Fetch this version again: its bytes on disk are not those that were installed."""


class ModelNotWantedError(ModelError):
    """Leave it: the rollout was halted, or another version is wanted by now."""
