"""What a model takes on this device: peak memory and how long an answer takes, by its golden input. For `edge-agent check`.

The model runs in a process with the limits of the configuration, next to the agent's own if that runs.
"""

import time
from dataclasses import dataclass
from pathlib import Path

from edge_agent.errors import ModelError
from edge_agent.models.config import ModelConfig
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.state import peek_active

_RUNS = 20


@dataclass(frozen=True, slots=True)
class MeasuredModel:
    """An installed model as it was measured here.

    Attributes:
        name: the model's.
        version: which version.
        peak_mib: the most memory that its process had resident.
        p95_ms: of some answers to the golden input, what 95 % stay below.
    """

    name: str
    version: int
    peak_mib: int
    p95_ms: float

    def __str__(self) -> str:
        return f"model {self.name} version {self.version}: peak {self.peak_mib} MiB, 95 % of answers within {self.p95_ms:.1f} ms"


def measure_active(config: ModelConfig, state_dir: Path) -> MeasuredModel | None:
    """Run the installed version some times; None where none is installed.

    Raises:
        ModelError: it does not load, or fails.
    """
    folder = state_dir / "models" / config.name
    active = peek_active(folder)
    if active is None:
        return None
    path = folder / "versions" / active.file_name
    if not path.exists():
        raise ModelError(f"model {config.name}: {path} is not there; the agent fetches it again")
    process = ModelProcess(path, active.spec, config)
    try:
        process.start()
        taken = []
        for _ in range(_RUNS):
            began = time.perf_counter()
            process.answers_to_golden()
            taken.append((time.perf_counter() - began) * 1_000)
        return MeasuredModel(config.name, active.version, process.peak_mib(), sorted(taken)[int(_RUNS * 0.95) - 1])
    finally:
        process.close()
