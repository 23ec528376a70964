"""Where the repository and its keys are."""

from pathlib import Path

from pipelines.config import CoreConfig


def models_folder(config: CoreConfig) -> Path:
    """The repository: `<lake>/models`."""
    return config.lake_root / "models"


def keys_folder(config: CoreConfig) -> Path:
    """The signing keys: `models` of the configuration, else `model-keys` beside the lake. Never inside the lake."""
    return Path(config.models) if config.models else config.lake_root.parent / "model-keys"
