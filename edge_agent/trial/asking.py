"""The socket in a running agent's state folder by which a trial's program requests samples."""

from pathlib import Path

TAP_PREFIX = "try-"
TAP_SUFFIX = ".sock"


def is_trial_requested(folder: Path) -> bool:
    """Whether somebody asks now."""
    return next(folder.glob(f"{TAP_PREFIX}*{TAP_SUFFIX}"), None) is not None
