"""Catchment: carries what devices see into training sets, and carries models back to the devices.

    import catchment

    train = catchment.open_set("lake/sets/braking/1", "train")
    lake = catchment.open_lake("lake")
    rules = catchment.Policy.load("policies/driving.yaml")

Names are loaded when they are first used: `import catchment` alone imports no other package, so that a device can use the
names of plug-ins without the core's libraries. docs/api.md lists all of them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_agent.errors import ConfigError, SourceAgainError, SourceEndedError, SourceError
    from edge_agent.sources.api import SampleBatch, Source
    from pipelines.errors import PipelineError
    from pipelines.open_lake import LakeView, open_lake
    from pipelines.policy.notebook import Policy
    from pipelines.training.batches import ShuffledSamples
    from pipelines.training.mix import MixedSets, mix_sets
    from pipelines.training.open import TrainingSet, open_set
    from pipelines.training.order import EpochState
    from pipelines.training.sample import Sample
    from schemas.contract import Contract

__all__ = [
    "ConfigError",
    "Contract",
    "EpochState",
    "LakeView",
    "MixedSets",
    "PipelineError",
    "Policy",
    "Sample",
    "SampleBatch",
    "ShuffledSamples",
    "Source",
    "SourceAgainError",
    "SourceEndedError",
    "SourceError",
    "TrainingSet",
    "mix_sets",
    "open_lake",
    "open_set",
]

_HOMES = {
    "open_set": "pipelines.training.open",
    "TrainingSet": "pipelines.training.open",
    "Sample": "pipelines.training.sample",
    "ShuffledSamples": "pipelines.training.batches",
    "EpochState": "pipelines.training.order",
    "MixedSets": "pipelines.training.mix",
    "mix_sets": "pipelines.training.mix",
    "open_lake": "pipelines.open_lake",
    "LakeView": "pipelines.open_lake",
    "Policy": "pipelines.policy.notebook",
    "PipelineError": "pipelines.errors",
    "Contract": "schemas.contract",
    "Source": "edge_agent.sources.api",
    "SampleBatch": "edge_agent.sources.api",
    "SourceError": "edge_agent.errors",
    "SourceEndedError": "edge_agent.errors",
    "SourceAgainError": "edge_agent.errors",
    "ConfigError": "edge_agent.errors",
}


def __getattr__(name: str) -> Any:
    """Load a public name from where it lives (PEP 562)."""
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module 'catchment' has no attribute {name!r}; docs/api.md lists what there is")
    try:
        value = getattr(import_module(home), name)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] not in ("pipelines", "edge_agent", "schemas"):
            raise ImportError(
                f"catchment.{name} needs {error.name}, which the bare install does not bring: pip install 'catchment[core]'"
            ) from error
        raise
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """All public names, loaded or not."""
    return sorted({*globals(), *__all__})
