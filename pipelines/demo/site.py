"""Lays the demo out on disk: one folder with the core's and the agents' configurations, policies, logs, lake and devices."""

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path

MODEL = "surface"


@dataclass(frozen=True, slots=True)
class SourceTable:
    """One `[[source]]` of an agent: what kind, into which stream, with which options."""

    kind: str
    stream: str
    options: Mapping[str, object]
    compress: bool = False
    contract: Path | None = None


@dataclass(frozen=True, slots=True)
class AgentPlan:
    """An agent to start: its device id and sources; `runs_model` if it takes models."""

    device: str
    sources: tuple[SourceTable, ...]
    runs_model: bool = False


@dataclass(frozen=True, slots=True)
class DemoSite:
    """The paths of one demo."""

    folder: Path

    @property
    def lake(self) -> Path:
        """The lake root."""
        return self.folder / "lake"

    @property
    def core_config(self) -> Path:
        """The core's configuration."""
        return self.folder / "core.toml"

    @property
    def policies(self) -> Path:
        """The policies' folder."""
        return self.folder / "policies"

    @property
    def contracts(self) -> Path:
        """The folder of contracts next to the built-in ones."""
        return self.folder / "contracts"

    @property
    def keys(self) -> Path:
        """The keys that sign models: never inside the lake."""
        return self.folder / "model-keys"

    @property
    def logs(self) -> Path:
        """The folder of the programs' output."""
        return self.folder / "logs"

    @property
    def end_mark(self) -> Path:
        """The devices end when this file appears."""
        return self.folder / "end-of-shift"

    @property
    def tallies(self) -> Path:
        """The folder of counts of samples that each device made."""
        return self.folder / "tallies"

    def agent_config(self, device: str) -> Path:
        """An agent's configuration."""
        return self.folder / "agents" / f"{device}.toml"


def device_command(site: DemoSite, device: str, name: str, seed: int) -> list[str]:
    """The command line of one simulated device."""
    return [
        sys.executable, "-m", "pipelines.demo.devices", device, "--seed", str(seed), "--seconds", "3600",
        "--until", str(site.end_mark), "--tally", str(site.tallies / name),
    ]  # fmt: skip


def simulated_agents(site: DemoSite, seed: int) -> tuple[AgentPlan, ...]:
    """The three agents: a line camera's watched folder, a vehicle with two streams, a switch."""
    line = site.folder / "devices" / "line-3"
    line.mkdir(parents=True, exist_ok=True)
    (line / "masks").mkdir(exist_ok=True)
    watched: dict[str, object] = {
        "path": str(line), "pattern": ["*.jpg"], "done": "delete", "masks": str(line / "masks"), "settle_ms": 100,
        "columns": {"camera": "line-3"},
    }  # fmt: skip

    def program(device: str, name: str) -> dict[str, object]:
        return {"command": device_command(site, device, name, seed)}

    return (
        AgentPlan("line-3", (SourceTable("directory", "camera_frame", watched),), runs_model=True),
        AgentPlan(
            "vehicle-7",
            (
                SourceTable("exec", "camera_frame", program("vehicle-camera", "vehicle-camera")),
                SourceTable("exec", "vehicle_telemetry", program("telemetry", "telemetry"), compress=True),
            ),
        ),
        AgentPlan("switch-1", (SourceTable("exec", "network_flow", program("switch", "switch"), compress=True),)),
    )


@dataclass(frozen=True, slots=True)
class Wiring:
    """Ports, what each agent's `[model]` table holds, and the director's public keys that agents trust."""

    broker_port: int
    agent_port: int
    model_table: Mapping[str, object] = field(default_factory=dict)
    director_keys: tuple[str, ...] = ()


def write_site(site: DemoSite, agents: Sequence[AgentPlan], wiring: Wiring) -> None:
    """Write every configuration, and copy the policies where a user can edit them."""
    for folder in (site.policies, site.contracts, site.tallies, site.folder / "agents"):
        folder.mkdir(parents=True, exist_ok=True)
    for policy in resources.files("pipelines.demo").joinpath("policies").iterdir():
        with resources.as_file(policy) as path:
            shutil.copy(path, site.policies / path.name)
    core = {
        "lake": "lake",
        "policies": "policies",
        "contracts": "contracts",
        "models": "model-keys",
        "broker": {"host": "127.0.0.1", "port": wiring.broker_port},
        "bridge": {"seal_ms": 300},
    }
    site.core_config.write_text(to_toml(core), encoding="utf-8")
    for agent in agents:
        site.agent_config(agent.device).write_text(to_toml(_agent_table(agent, wiring)), encoding="utf-8")


def _agent_table(agent: AgentPlan, wiring: Wiring) -> dict[str, object]:
    table: dict[str, object] = {
        "device": agent.device,
        "state_dir": f"state/{agent.device}",
        "broker": {"host": "127.0.0.1", "port": wiring.agent_port},
        "uplink": {"report_interval_s": 1.0, "resend_after_s": 10.0},
        "source": [_source_table(source) for source in agent.sources],
    }
    if wiring.director_keys:
        table["director"] = {"public_keys": list(wiring.director_keys)}
    if agent.runs_model and wiring.model_table:
        table["model"] = dict(wiring.model_table)
    return table


def _source_table(source: SourceTable) -> dict[str, object]:
    table: dict[str, object] = {"kind": source.kind, "stream": source.stream, "compress": source.compress}
    if source.contract is not None:
        table["contract"] = str(source.contract)
    return {**table, "options": dict(source.options)}


def to_toml(document: Mapping[str, object]) -> str:
    """A document of texts, numbers, truths, lists and tables as TOML."""
    return "\n".join(_toml_lines(document, ())) + "\n"


def _toml_lines(table: Mapping[str, object], path: tuple[str, ...]) -> list[str]:
    lines = [f"{_key(name)} = {_toml_value(value)}" for name, value in table.items() if not _is_table(value)]
    for name, value in table.items():
        place = (*path, name)
        header = ".".join(_key(part) for part in place)
        if isinstance(value, Mapping):
            lines += ["", f"[{header}]", *_toml_lines(value, place)]
        elif _is_table(value) and isinstance(value, list):
            for item in value:
                lines += ["", f"[[{header}]]", *_toml_lines(item, place)]
    return lines


def _is_table(value: object) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, list) and bool(value) and isinstance(value[0], Mapping))


def _key(name: str) -> str:
    return name if name.replace("_", "").replace("-", "").isalnum() and name.isascii() else json.dumps(name)


def _toml_value(value: object) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(_toml_value(item) for item in value) + "]"
    # JSON's texts, numbers and truths are TOML's, too.
    return json.dumps(str(value) if isinstance(value, Path) else value)
