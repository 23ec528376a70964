"""What can be wrong with an image. It is data, so it ends as a rejection with this text as its reason."""

from pipelines.errors import RefusedError


class UnreadableImageError(RefusedError):
    """This image cannot be cut: not a TIFF, not of a supported kind, above a limit, or damaged. The message says which."""
