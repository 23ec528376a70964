"""The agent's configuration: one TOML file, checked whole before anything starts."""

import ipaddress
import re
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeVar

import msgspec

from edge_agent.errors import ConfigError
from schemas.builtin import builtin_contract
from schemas.contract import Contract, decode_contract
from schemas.envelope import MAX_SAMPLES_PER_ENVELOPE
from schemas.errors import SchemaError
from schemas.ids import DeviceId, StreamName
from schemas.parts import MAX_PART_BYTES
from schemas.topics import DEFAULT_NAMESPACE, Topics

MIB = 1024 * 1024
MAX_CONFIG_BYTES = MIB
_PATH = re.compile(r"`\$\.?([^`]*)`")
_T = TypeVar("_T")


def _within(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ValueError(f"{name} {value} must be within {low} and {high}")


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


class _Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. A key that is not listed is an error: a misspelt key must not be a silent default."""


class TlsConfig(_Section, frozen=True):
    """Mutual TLS 1.3: the broker's authority, this device's certificate (its common name is the device id) and key."""

    ca: Path
    cert: Path
    key: Path


class BrokerConfig(_Section, frozen=True):
    """Where the broker is. Without `tls` only a loopback address is accepted."""

    host: str = "127.0.0.1"
    port: int = 1883
    namespace: str = DEFAULT_NAMESPACE
    keepalive_s: int = 30
    tls: TlsConfig | None = None

    def __post_init__(self) -> None:
        _within("port", self.port, 1, 65_535)
        _within("keepalive_s", self.keepalive_s, 5, 3_600)
        Topics(self.namespace)
        if self.tls is None and not _is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is not on this machine, and samples never cross a network in clear:"
                " add [broker.tls] with ca, cert and key"
            )


class SpoolConfig(_Section, frozen=True):
    """The durable queue: its quota, what it leaves free on the disk, how long an append may wait, what is a large payload."""

    max_bytes: int = 1024 * MIB
    min_free_bytes: int = 16 * MIB
    linger_ms: int = 20
    part_threshold_bytes: int = MIB

    def __post_init__(self) -> None:
        _within("max_bytes", self.max_bytes, 8 * MIB, 2**50)
        _within("min_free_bytes", self.min_free_bytes, 0, 2**50)
        _within("linger_ms", self.linger_ms, 0, 50)
        _within("part_threshold_bytes", self.part_threshold_bytes, 4096, 128 * MIB)


class UplinkConfig(_Section, frozen=True):
    """How much may be under way at once, and when it is sent again.

    Attributes:
        window_bytes: bodies sent that the broker has not acknowledged; they are held in memory.
        unsettled_bytes: bodies sent that no receipt covers yet; beyond it sending waits for the core.
        resend_after_s: what is not settled by then is sent again (each time after twice as long).
        envelope_bytes: a batch of samples is cut into bodies of about this size.
        part_bytes: a large payload is cut into parts of this size.
        report_interval_s: how often the device tells its books, when they changed.
    """

    window_bytes: int = 4 * MIB
    unsettled_bytes: int = 256 * MIB
    resend_after_s: float = 60.0
    envelope_bytes: int = 256 * 1024
    part_bytes: int = MIB
    report_interval_s: float = 5.0

    def __post_init__(self) -> None:
        _within("window_bytes", self.window_bytes, 64 * 1024, 1024 * MIB)
        _within("unsettled_bytes", self.unsettled_bytes, self.window_bytes, 2**50)
        _within("resend_after_s", self.resend_after_s, 0.1, 86_400)
        _within("envelope_bytes", self.envelope_bytes, 4096, 64 * MIB)
        _within("part_bytes", self.part_bytes, 4096, MAX_PART_BYTES)
        _within("report_interval_s", self.report_interval_s, 0.1, 3_600)


class SourceConfig(_Section, frozen=True):
    """One source: what kind, into which stream, under which contract, how valuable.

    Attributes:
        kind: what builds it (directory, replay, exec).
        stream: the stream's name, equal to its contract's.
        contract: a compiled contract's path; without it the one that ships under the stream's name.
        priority: when the spool is full, lower priorities are given up first.
        when_full: "evict": make room by giving samples up; "block": this stream's samples are never given up, its source waits.
        max_samples: samples per batch.
        compress: zstd on bodies; worth it for telemetry, not for JPEG.
        options: what this kind of source wants to know.
    """

    kind: str
    stream: str
    contract: Path | None = None
    priority: int = 100
    when_full: Literal["evict", "block"] = "evict"
    max_samples: int = 1_000
    compress: bool = False
    options: dict[str, Any] = {}

    def __post_init__(self) -> None:
        StreamName(self.stream)
        _within("priority", self.priority, 0, 1_000_000)
        _within("max_samples", self.max_samples, 1, MAX_SAMPLES_PER_ENVELOPE)

    @property
    def name(self) -> str:
        """What the spool files its position under: stable while kind, stream and options stay the same."""
        return f"{self.kind}:{self.stream}:{msgspec.json.encode(self.options, order='sorted').decode()}"


class AgentConfig(_Section, frozen=True):
    """The whole file. `model` is checked by the models' room, which is only loaded when the table is there."""

    device: str
    state_dir: Path
    broker: BrokerConfig = BrokerConfig()
    spool: SpoolConfig = SpoolConfig()
    uplink: UplinkConfig = UplinkConfig()
    source: tuple[SourceConfig, ...] = ()
    model: dict[str, Any] | None = None
    log_level: str = "info"

    def __post_init__(self) -> None:
        DeviceId(self.device)
        if self.log_level not in ("debug", "info", "warning", "error"):
            raise ValueError(f"log_level {self.log_level!r} must be debug, info, warning or error")
        names = [source.name for source in self.source]
        if len(set(names)) != len(names):
            raise ValueError("two [[source]] tables are the same: each sample would be captured twice")

    @property
    def device_id(self) -> DeviceId:
        """The device's name."""
        return DeviceId(self.device)

    @property
    def spool_dir(self) -> Path:
        """Where the spool lives."""
        return self.state_dir / "spool"


def load_agent_config(path: Path) -> AgentConfig:
    """Read and check a configuration file. Relative paths in it start at the file's own folder.

    Raises:
        ConfigError: it cannot be read, or something in it is wrong; names the file, the key and where possible the line.
    """
    try:
        text = path.read_bytes()[:MAX_CONFIG_BYTES].decode()
        document = tomllib.loads(text)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; give the agent's TOML file with -c") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error
    config = _convert(path, text, document, AgentConfig)
    return _with_absolute_paths(config, path.absolute().parent)


def load_contract(source: SourceConfig) -> Contract:
    """The contract of a source's stream.

    Raises:
        ConfigError: it cannot be read, is none, or is of another stream.
    """
    try:
        contract = builtin_contract(source.stream) if source.contract is None else decode_contract(source.contract.read_bytes())
    except OSError as error:
        raise ConfigError(f"source.contract {source.contract}: {error.strerror}; compile it from its ODCS file") from error
    except SchemaError as error:
        raise ConfigError(f"source.contract of stream {source.stream}: {error}") from error
    if contract.name != source.stream:
        raise ConfigError(f"source.contract {source.contract} is of stream {contract.name}, not {source.stream}")
    return contract


def _convert(path: Path, text: str, document: object, kind: type[_T]) -> _T:
    try:
        return msgspec.convert(document, kind, strict=True, dec_hook=_path_from_text)
    except msgspec.ValidationError as error:
        message = str(error)
        found = _PATH.search(message)
        key = found.group(1).strip(".") if found else ""
        line = _line_of(text, message, key)
        place = f"{path}:{line}" if line else str(path)
        plain = _PATH.sub("", message).removesuffix(" - at ").strip()
        raise ConfigError(f"{place}: {key or 'top level'}: {plain}") from error


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


def _line_of(text: str, message: str, key: str) -> int | None:
    """The line a complaint is about, found by the last word of its key or by the key the message names."""
    named = re.search(r"field `([^`]+)`", message)
    last_word = named.group(1) if named else re.sub(r"\[[^\]]*\]", "", key).rpartition(".")[2] or message.partition(" ")[0]
    pattern = re.compile(rf"^\s*(\[+[\w.]*{re.escape(last_word)}\]+|{re.escape(last_word)}\s*=)")
    return next((number for number, line in enumerate(text.splitlines(), 1) if pattern.match(line)), None)


def _with_absolute_paths(config: AgentConfig, folder: Path) -> AgentConfig:
    broker = config.broker
    if (tls := broker.tls) is not None:
        broker = msgspec.structs.replace(broker, tls=TlsConfig(ca=folder / tls.ca, cert=folder / tls.cert, key=folder / tls.key))
    sources = tuple(
        msgspec.structs.replace(source, contract=None if source.contract is None else folder / source.contract)
        for source in config.source
    )
    model = config.model
    if model is not None and isinstance(root := model.get("root"), str):
        model = {**model, "root": str(folder / root)}
    return msgspec.structs.replace(config, state_dir=folder / config.state_dir, broker=broker, source=sources, model=model)
