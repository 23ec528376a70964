"""How a trial's program asks a running agent: a socket of this name in its state folder."""

from pathlib import Path

TAP_PREFIX = "try-"
TAP_SUFFIX = ".sock"


def is_trial_requested(folder: Path) -> bool:
    """Whether somebody asks now."""
    return next(folder.glob(f"{TAP_PREFIX}*{TAP_SUFFIX}"), None) is not None
