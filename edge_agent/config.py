"""The agent's configuration: one TOML file, checked whole before anything starts."""

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from catchment.runtime.toml_config import Converted, TomlSyntaxError, convert_toml, read_toml
from edge_agent.errors import ConfigError
from edge_agent.sections import (
    MAX_PRIORITY,
    MIB,
    BrokerConfig,
    DirectorConfig,
    HealthConfig,
    InspectConfig,
    PolicyConfig,
    ReportConfig,
    Section,
    TlsConfig,
    UplinkConfig,
    within,
)
from edge_agent.sources.options import resolve_paths
from schemas.contract import Contract, builtin_contract, decode_contract
from schemas.envelope import MAX_SAMPLES_PER_ENVELOPE
from schemas.errors import SchemaError
from schemas.ids import DeviceId, StreamName

# The sections are asked for here by everyone else.
__all__ = [
    "AgentConfig",
    "BrokerConfig",
    "DirectorConfig",
    "HealthConfig",
    "PolicyConfig",
    "SourceConfig",
    "SpoolConfig",
    "TlsConfig",
    "UplinkConfig",
]

_LABEL = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")
_T = TypeVar("_T")


class SpoolConfig(Section, frozen=True):
    """The durable queue: its quota, what it leaves free on the disk, and the key of what it keeps."""

    max_bytes: int = 1024 * MIB
    min_free_bytes: int = 16 * MIB
    linger_ms: int = 20
    part_threshold_bytes: int = MIB
    key: Path | None = None

    def __post_init__(self) -> None:
        within("max_bytes", self.max_bytes, 8 * MIB, 2**50)
        within("min_free_bytes", self.min_free_bytes, 0, 2**50)
        within("linger_ms", self.linger_ms, 0, 50)
        within("part_threshold_bytes", self.part_threshold_bytes, 4096, 128 * MIB)


# The kind of the agent's own source, which `[health] heartbeat_s` asks for.
HEARTBEAT = "heartbeat"


class SourceConfig(Section, frozen=True, rename={"label": "name"}):
    """One source: what kind, into which stream, under which contract, how valuable.

    Attributes:
        label: `name` in the file: what it is called in status and health.
        kind: what builds it (directory, replay, exec).
        stream: the stream's name, equal to its contract's.
        contract: a compiled contract's path; without it the one that ships under the stream's name.
        priority: when the spool is full, lower priorities are given up first.
        when_full: "evict": make room by giving samples up; "block": this stream's samples are never given up, its source waits.
        max_samples: samples per batch.
        compress: zstd on bodies; worth it for telemetry, not for JPEG.
        options: what this kind of source wants to know.
        report: which samples are worth storing; without it all are.
        inspect: what computes columns that the contract has and the source does not fill.
    """

    kind: str
    stream: str
    label: str = ""
    contract: Path | None = None
    priority: int = 100
    when_full: Literal["evict", "block"] = "evict"
    max_samples: int = 1_000
    compress: bool = False
    options: dict[str, Any] = {}  # noqa: RUF012 # msgspec gives each its own
    report: ReportConfig | None = None
    inspect: tuple[InspectConfig, ...] = ()

    def __post_init__(self) -> None:
        StreamName(self.stream)
        if self.label and not _LABEL.fullmatch(self.label):
            raise ValueError(f"name {self.label[:80]!r} must be letters, digits, dot, dash and underscore, at most 64")
        within("priority", self.priority, 0, MAX_PRIORITY)
        within("max_samples", self.max_samples, 1, MAX_SAMPLES_PER_ENVELOPE)

    @property
    def name(self) -> str:
        """The key of its position in the spool: stable while kind, stream and options stay the same."""
        return f"{self.kind}:{self.stream}:{msgspec.json.encode(self.options, order='sorted').decode()}"

    @property
    def waits_for_room(self) -> bool:
        """Whether its samples are never given up: it waits for space instead."""
        return self.when_full == "block"

    @property
    def resolved(self) -> dict[str, Any]:
        """The options with absolute paths: what the source is built from."""
        return dict(self.options)


class PlacedSource(SourceConfig, frozen=True):
    """A source out of a file. `options` stay as they are written, because the position is filed under them."""

    folder: Path = Path("/")

    @property
    def resolved(self) -> dict[str, Any]:
        """The options with absolute paths; relative ones start at the file's folder."""
        return resolve_paths(self.kind, self.options, self.folder)


class RedactionConfig(Section, frozen=True):
    """`key`: the file with the device's key of keyed hashes, where a contract asks for those."""

    key: Path | None = None


class AgentConfig(Section, frozen=True):
    """The whole file. `model` is checked by the models' room, which is only loaded when the table is there.

    `device` may be absent where [broker.tls] names a certificate: its common name is the device id.
    """

    state_dir: Path
    device: str = ""
    broker: BrokerConfig = BrokerConfig()
    spool: SpoolConfig = SpoolConfig()
    uplink: UplinkConfig = UplinkConfig()
    health: HealthConfig = HealthConfig()
    director: DirectorConfig | None = None
    policy: PolicyConfig | None = None
    source: tuple[SourceConfig, ...] = ()
    redaction: RedactionConfig = RedactionConfig()
    model: dict[str, Any] | tuple[dict[str, Any], ...] | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        if self.device:
            DeviceId(self.device)
        elif self.broker.tls is None:
            raise ValueError("device is missing: name it, or let [broker.tls] name its certificate")
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level {self.log_level!r} must be debug, info, warning or error")
        names = [source.name for source in self.source]
        labels = [source.label for source in self.source if source.label]
        if len(set(labels)) != len(labels):
            raise ValueError("two [[source]] tables have the same name: give each its own")
        if len(set(names)) != len(names):
            raise ValueError("two [[source]] tables are the same: each sample would be captured twice")

    @property
    def models(self) -> tuple[dict[str, Any], ...]:
        """The tables of the models: one [model], or several [[model]]."""
        return (self.model,) if isinstance(self.model, dict) else self.model or ()

    @property
    def device_id(self) -> DeviceId:
        """The device's name."""
        return DeviceId(self.device)

    @property
    def spool_dir(self) -> Path:
        """The folder of the spool."""
        return self.state_dir / "spool"


def load_agent_config(path: Path, device: str = "") -> AgentConfig:
    """Read and check a configuration file. Relative paths in it start at the file's own folder.

    Args:
        path: the file.
        device: the device id, where the caller has read the certificate already; empty: it is read here.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; names the file, the key and where possible the line.
    """
    try:
        text, document = read_toml(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the agent's TOML file with -c") from error
    except TomlSyntaxError as error:
        raise ConfigError(error.fault.located(path)) from error
    found = convert_document(text, document, path.absolute().parent)
    if found.faults or found.value is None:
        raise ConfigError(found.faults[0].located(path))
    return with_identity(path, found.value, device)


def load_contract(source: SourceConfig) -> Contract:
    """The contract of a source's stream.

    Raises:
        ConfigError: it cannot be read, is none, or is of another stream.
    """
    try:
        contract = builtin_contract(source.stream) if source.contract is None else decode_contract(source.contract.read_bytes())
    except OSError as error:
        raise ConfigError(
            f"source.contract {source.contract}: {error.strerror}; make it by `catchment contract show NAME --as agent`"
        ) from error
    except SchemaError as error:
        raise ConfigError(f"source.contract of stream {source.stream}: {error}") from error
    if contract.name != source.stream:
        raise ConfigError(f"source.contract {source.contract} is of stream {contract.name}, not {source.stream}")
    return contract


def needs_restart(old: AgentConfig, new: AgentConfig) -> tuple[str, ...]:
    """Name the changed tables that are read at the start alone: all but the sources and the rates of the uplink."""
    at_start = [name for name in AgentConfig.__struct_fields__ if name not in ("source", "uplink")]
    windows = ("window_bytes", "unsettled_bytes", "resend_after_s", "envelope_bytes", "part_bytes", "report_interval_s")
    changed = [name for name in at_start if getattr(old, name) != getattr(new, name)]
    return (*changed, *(f"uplink.{name}" for name in windows if getattr(old.uplink, name) != getattr(new.uplink, name)))


def convert_document(text: str, document: Mapping[str, Any], folder: Path) -> Converted[AgentConfig]:
    """The configuration in a TOML document, less what is wrong with it; relative paths in it start at `folder`."""
    stand_ins = {"device": "unnamed", "state_dir": Path()}
    found = convert_toml(text, document, AgentConfig, _path_from_text, stand_ins)
    return found if found.value is None else replace(found, value=_with_absolute_paths(found.value, folder))


def with_identity(path: Path, config: AgentConfig, known: str) -> AgentConfig:
    """The certificate says who the device is; the file may say it too, but not otherwise.

    Raises:
        ConfigError: they differ, or neither says it.
    """
    if config.broker.tls is None:
        return config
    if not known:
        from edge_agent.identity import read_certificate  # noqa: PLC0415 # needed with a certificate alone

        cert = config.broker.tls.cert
        try:
            known = read_certificate(cert).device
        except OSError as error:
            if config.device:
                # Named in the file: samples are captured, and the connection tells what is wrong with the certificate.
                return config
            raise ConfigError(f"{path}: broker.tls.cert {cert}: {error.strerror}; and device is not set either") from error
    if config.device not in ("", known):
        raise ConfigError(f"{path}: device {config.device!r} is not the certificate's common name, {known!r}; leave device out")
    return msgspec.structs.replace(config, device=str(known))


def convert_table(name: str, table: dict[str, object], kind: type[_T]) -> _T:
    """Check a table whose meaning another room knows.

    Raises:
        ConfigError: it is wrong; names the key.
    """
    try:
        return msgspec.convert(table, kind, strict=True, dec_hook=_path_from_text)
    except msgspec.ValidationError as error:
        raise ConfigError(f"[{name}]: {str(error).replace('`', '')}") from error


def _path_from_text(kind: type, value: object) -> object:
    if kind is Path and isinstance(value, str):
        return Path(value)
    raise ValueError(f"expected {kind.__name__} as text")


def _with_absolute_paths(config: AgentConfig, folder: Path) -> AgentConfig:
    broker = config.broker
    if (tls := broker.tls) is not None:
        broker = msgspec.structs.replace(broker, tls=TlsConfig(ca=folder / tls.ca, cert=folder / tls.cert, key=folder / tls.key))
    sources = tuple(
        PlacedSource(
            **{name: getattr(source, name) for name in SourceConfig.__struct_fields__ if name != "contract"},
            contract=None if source.contract is None else folder / source.contract,
            folder=folder,
        )
        for source in config.source
    )
    models = tuple(
        {**model, "root": str(folder / root)} if isinstance(root := model.get("root"), str) else model for model in config.models
    )
    key = config.redaction.key
    redaction = RedactionConfig(key=None if key is None else folder / key)
    if config.spool.key is not None:
        config = msgspec.structs.replace(config, spool=msgspec.structs.replace(config.spool, key=folder / config.spool.key))
    director = config.director
    if director is not None and director.file is not None:
        director = msgspec.structs.replace(director, file=folder / director.file)
    return msgspec.structs.replace(
        config,
        director=director,
        state_dir=folder / config.state_dir,
        broker=broker,
        source=sources,
        redaction=redaction,
        model=models or None,
    )
