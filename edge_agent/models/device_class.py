"""What a device is to a model: machine, cores, memory, and what its runtime can load. Whether a model fits is decided here.

Preflight comes from the signed description alone, before the model's first byte is fetched. What an installed model takes is
measured for `edge-agent check`, in a process with the limits of the configuration.
"""

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from catchment.runtime.worker.limits import MIB, WorkerLimits
from catchment.runtime.worker.outcome import Answered
from catchment.runtime.worker.process import WorkerProcess, WorkerSpec
from edge_agent.errors import ModelError, ModelUnfitError
from edge_agent.models.config import ModelConfig
from edge_agent.models.model_process import ModelProcess
from edge_agent.models.state import peek_active
from schemas.model import ModelSpec

_TARGET = "edge_agent.models.device_probe:open_probe"
_PROBE_MEMORY_BYTES = 192 * MIB
_PROBE_S = 60.0
_OWN = {"": "ONNX", "ai.onnx.ml": "ai.onnx.ml"}
# What a process has resident and its limit does not count: the code of its libraries.
_CODE_MIB = 64
_MEASURED_RUNS = 20


class RuntimeProbe(msgspec.Struct, frozen=True):
    """What the runtime of this device loads, as it was tried.

    Attributes:
        opsets: operator set -> the newest version that loads.
        has_contrib: whether it has the operators of com.microsoft.
        small_ms: what a small convolution takes, the median of some runs: how fast the device is.
    """

    opsets: dict[str, int]
    has_contrib: bool
    small_ms: float


class DeviceClass(msgspec.Struct, frozen=True):
    """A device as models see it."""

    machine: str
    cores: int
    memory_mib: int
    runtime: str
    probe: RuntimeProbe

    def __str__(self) -> str:
        opsets = ", ".join(f"{_OWN.get(name, name)} {number}" for name, number in sorted(self.probe.opsets.items()))
        return (
            f"{self.machine}, {self.cores} cores, {self.memory_mib:,} MiB, onnxruntime {self.runtime} ({opsets}), "
            f"{self.probe.small_ms:.1f} ms for 10 million multiplications"
        )


def probe_device() -> DeviceClass:
    """Try what this device's runtime loads, in a limited process.

    Raises:
        ModelError: the process does not answer.
    """
    limits = WorkerLimits(memory_bytes=_PROBE_MEMORY_BYTES, cpu_s=round(_PROBE_S), start_timeout_s=_PROBE_S)
    with WorkerProcess(WorkerSpec(target=_TARGET, options=b"", limits=limits)) as worker:
        try:
            outcome = worker.start()
            if isinstance(outcome, Answered):
                outcome = worker.request(b"", _PROBE_S) or outcome
        except OSError as error:
            raise ModelError(f"the process that looks at this device's runtime cannot be started: {error}") from error
    if not isinstance(outcome, Answered):
        raise ModelError(f"this device's runtime cannot be looked at: {outcome}")
    found = msgspec.msgpack.decode(outcome.body, type=RuntimeProbe)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // MIB
    return DeviceClass(platform.machine(), len(os.sched_getaffinity(0)), memory, _runtime_version(), found)


def _runtime_version() -> str:
    try:
        return version("onnxruntime")
    except PackageNotFoundError:
        return "unknown"


class Preflight:
    """Decides whether a model fits this device; the device is looked at once, when the first model says what it needs.

    Args:
        config: limits of the model.
        probe: looks at the device.
    """

    def __init__(self, config: ModelConfig, probe: Callable[[], DeviceClass] = probe_device) -> None:
        self._config = config
        self._probe = probe
        self._device: DeviceClass | None = None

    def check(self, spec: ModelSpec) -> None:
        """Check a description.

        Raises:
            ModelUnfitError: this device cannot run such a model.
            ModelError: the device cannot be looked at.
        """
        if spec.needs is None:
            return  # of a release before: the trial shows it
        if self._device is None:
            self._device = self._probe()
        reason = why_unfit(spec, self._device, self._config)
        if reason:
            raise ModelUnfitError(f"{spec.name} version {spec.version} does not fit this device: {reason}")


def why_unfit(spec: ModelSpec, device: DeviceClass, config: ModelConfig) -> str:
    """The reason why a device cannot run a model; empty: none is known. Pure."""
    needs = spec.needs
    if needs is None:
        return ""
    for name, number in sorted(needs.opsets.items()):
        if name in _OWN and number > device.probe.opsets.get(name, 0):
            has = device.probe.opsets.get(name, 0)
            return f"it needs operator set {number} of {_OWN[name]}, and onnxruntime {device.runtime} here has {has}"
    foreign = [name for name in needs.ops if not (device.probe.has_contrib and name.startswith("com.microsoft::"))]
    if foreign:
        return f"it needs the operators {', '.join(foreign[:4])}, which are not here"
    if needs.bytes > config.max_bytes:
        return f"it has {needs.bytes:,} bytes; max_bytes is {config.max_bytes:,}"
    if needs.peak_mib > config.max_memory_mib + _CODE_MIB:
        return f"it took {needs.peak_mib} MiB where it was published; max_memory_mib is {config.max_memory_mib}"
    return ""


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
        for _ in range(_MEASURED_RUNS):
            began = time.perf_counter()
            process.answers_to_golden()
            taken.append((time.perf_counter() - began) * 1_000)
        return MeasuredModel(config.name, active.version, process.peak_mib(), sorted(taken)[int(_MEASURED_RUNS * 0.95) - 1])
    finally:
        process.close()
