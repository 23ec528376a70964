"""The core's configuration: one TOML file, read once, into one frozen object."""

import os
from pathlib import Path

import msgspec

from catchment.runtime.renamed_keys import rename_keys
from catchment.runtime.toml_config import TomlSyntaxError, convert_toml, read_toml
from pipelines.errors import ConfigError
from schemas.topics import DEFAULT_NAMESPACE

MAX_LIFETIME_H = 87_600
CONFIG_VARIABLE = "CATCHMENT_CONFIG"
CONFIG_PLACES = (Path("core.toml"), Path("/etc/catchment/core.toml"))
RENAMED_KEYS = {
    "run.crew": "run.worker_processes",
    "run.workers": "run.dask_workers",
    "run.fault_stop_share": "run.fault_breaker_share",
    "run.fault_stop_count": "run.fault_breaker_count",
    "alarms.far_silent_s": "alarms.remote_silent_s",
}


class CoreTlsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Paths of the authority that signed the broker's certificate, and of this role's own certificate and key."""

    ca: str
    cert: str
    key: str


class CoreBrokerConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The broker's address. Without `tls` only a loopback host is accepted."""

    host: str = "127.0.0.1"
    port: int = 1883
    namespace: str = DEFAULT_NAMESPACE
    keepalive_s: int = 30
    tls: CoreTlsConfig | None = None


class BridgeConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of a segment: it is sealed at `seal_bytes` or `seal_ms` after its first message.

    Of several bridges each has its own `id` and `partition`, and all have the same `partitions`.
    """

    id: str = "bridge-0"
    partition: int = 0
    partitions: int = 1
    seal_bytes: int = 64 * 1024 * 1024
    seal_ms: int = 1_000
    linger_ms: int = 20
    max_queue_bytes: int = 256 * 1024 * 1024
    receive_maximum: int = 1_000
    session_expiry_s: int = 14 * 86_400
    keep_parts_s: int = 14 * 86_400


class ShareConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Limits of one device, and the space that stays free on the disk; 0: no limit.

    Over its rates a device is deferred: what it sends is not landed, and it keeps what has no receipt. Below `low_free_bytes`
    one device may bring an eighth of what is left, below `min_free_bytes` nothing is landed. On a small disk a tenth and a
    twentieth of it are enough.
    """

    bytes_per_s: int = 32 * 1024 * 1024
    burst_bytes: int = 2 * 1024**3
    messages_per_s: int = 5_000
    burst_messages: int = 500_000
    streams: int = 256
    open_objects: int = 256
    parts_bytes: int = 64 * 1024**3
    low_free_bytes: int = 8 * 1024**3
    min_free_bytes: int = 1024**3

    def __post_init__(self) -> None:
        for name in self.__struct_fields__:
            if getattr(self, name) < 0:
                raise ValueError(f"shares.{name} must be 0 or more")
        for rate, burst in (("bytes_per_s", "burst_bytes"), ("messages_per_s", "burst_messages")):
            if getattr(self, rate) and not getattr(self, burst):
                raise ValueError(f"shares.{burst} must be above 0 where {rate} is")


class RunConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Settings of runs: `runner`, `dask_workers` and `beam_options` are the options of `catchment run`.

    A run is paused where `fault_breaker_share` of its messages, and `fault_breaker_count` in sequence, meet an internal error.
    Of one device no more than `max_device_ranges` settled ranges are kept apart: beyond them its oldest gaps are closed.
    """

    interval_ms: int = 200
    max_segments: int = 64
    max_envelope_bytes: int = 256 * 1024 * 1024
    max_row_bytes: int = 64 * 1024 * 1024
    max_image_pixels: int = 20_000_000_000
    runner: str = "direct"
    dask_workers: int = 0
    beam_options: tuple[str, ...] = ()
    worker_processes: int = 2
    worker_memory_bytes: int = 4 * 1024**3
    fault_breaker_share: float = 0.9
    fault_breaker_count: int = 10
    worker_test_s: float = 60
    max_device_ranges: int = 20_000


class ChipsConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What cutting slides into chips may take: how many at once, memory of each process, and time for one band of a slide."""

    processes: int = 1
    worker_memory_bytes: int = 2 * 1024**3
    band_timeout_s: float = 120

    def __post_init__(self) -> None:
        if self.processes < 1 or self.worker_memory_bytes < 256 * 1024**2 or self.band_timeout_s <= 0:
            raise ValueError("chips: processes is at least 1, worker_memory_bytes at least 256 MiB, band_timeout_s above 0")


class RemoteConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A lake root on S3-compatible storage: `s3://bucket/prefix`; keys and secrets come from the environment.

    The storage must refuse a conditional put (`If-None-Match`, `If-Match`) whose condition does not hold.
    """

    url: str
    endpoint: str = ""
    region: str = "us-east-1"
    timeout_s: int = 30
    retries: int = 5
    retry_s: int = 60
    claim_s: int = 20


class WatchConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The address at which `catchment up` serves /metrics, /live and /ready; port 0: none."""

    host: str = "127.0.0.1"
    port: int = 0


class AlarmConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """From when on `status`, `watch` and the metrics call something an alarm; a `quarantine_share` of 0: never.

    A stream's share of quarantined samples is taken over the last 50 runs, and tells nothing below `quarantine_count` of them.
    `device_ranges`: from so many settled ranges of one device on; 0: never.
    """

    silent_s: float = 30
    remote_silent_s: float = 90
    stuck_s: float = 120
    quarantine_share: float = 0.05
    quarantine_count: int = 100
    suspended: bool = True
    device_ranges: int = 10_000


class MaintainConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Hours for which data is kept, and the interval at which `catchment up` cleans up; `every_s` 0: never.

    `keep_versions`: how many versions of a table can be opened at most, however young the older ones are.
    """

    keep_versions_h: float = 168
    keep_versions: int = 500
    keep_landing_h: float = 168
    keep_objects_h: float = 720
    every_s: float = 3_600

    def __post_init__(self) -> None:
        if self.keep_versions < 1 or min(self.keep_versions_h, self.keep_landing_h, self.keep_objects_h, self.every_s) < 0:
            raise ValueError("maintain: keep_versions is at least 1, and no time is negative")


class CoreDirectorConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The keys that sign what devices are ordered to do, and for how long a device may take a desired state."""

    keys: str = ""
    lifetime_h: float = 720


class CoreConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """All of it. `lake` is the lake root's folder; `policies` and `contracts` are folders of YAML, none if empty."""

    lake: str = "lake"
    policies: str = ""
    contracts: str = ""
    models: str = ""
    broker: CoreBrokerConfig = CoreBrokerConfig()
    bridge: BridgeConfig = BridgeConfig()
    shares: ShareConfig = ShareConfig()
    run: RunConfig = RunConfig()
    chips: ChipsConfig = ChipsConfig()
    remote: RemoteConfig | None = None
    watch: WatchConfig = WatchConfig()
    alarms: AlarmConfig = AlarmConfig()
    maintain: MaintainConfig = MaintainConfig()
    director: CoreDirectorConfig = CoreDirectorConfig()

    @property
    def lake_root(self) -> Path:
        """The lake root's folder."""
        return Path(self.lake)


def found_config() -> Path | None:
    """The configuration that a command takes without `-c`; None if there is none."""
    if os.environ.get(CONFIG_VARIABLE):
        return Path(os.environ[CONFIG_VARIABLE])
    return next((path for path in CONFIG_PLACES if path.exists()), None)


def config_path(path: Path | None) -> Path:
    """The configuration file that `-c` names, or the one that is found without it.

    Raises:
        ConfigError: there is none.
    """
    found = path or found_config()
    if found is None:
        places = ", ".join(map(str, CONFIG_PLACES))
        raise ConfigError(f"no configuration: neither ${CONFIG_VARIABLE} nor {places}; give the core's TOML file with -c")
    return found


def load_core_config(path: Path | None = None) -> CoreConfig:
    """Read a configuration file; relative paths in it are taken from its own folder.

    Args:
        path: the file; None: `$CATCHMENT_CONFIG`, else `./core.toml`, else `/etc/catchment/core.toml`.

    Raises:
        ConfigError: no such file, not TOML, or an unknown key or wrong type; the message names it.
    """
    path = config_path(path)
    try:
        text, document = read_toml(path)
        document = rename_keys(document, RENAMED_KEYS, str(path))
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); give an existing file with -c") from error
    except TomlSyntaxError as error:
        raise ConfigError(error.fault.located(path)) from error
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    found = convert_toml(text, document, CoreConfig)
    if found.faults or found.value is None:
        raise ConfigError(
            "\n".join(fault.located(path) for fault in found.faults) + "\nsee docs/data-engineer/reference.md for every key"
        )
    config = found.value
    if config.broker.tls is None and config.broker.host not in ("127.0.0.1", "::1", "localhost"):
        raise ConfigError(f"{path}: broker.host {config.broker.host!r} is not loopback; give [broker.tls] ca, cert and key")
    if not 1 <= config.director.lifetime_h <= MAX_LIFETIME_H:
        raise ConfigError(f"{path}: director.lifetime_h {config.director.lifetime_h:g} must be within 1 and {MAX_LIFETIME_H}")
    anchored = _anchored(config, path.parent)
    require_folder(anchored.lake_root)
    return anchored


def require_folder(root: Path) -> None:
    """Refuse a lake root that cannot be a folder; one that is not there yet can.

    Raises:
        ConfigError: it, or what it would lie in, is a file.
    """
    nearest = next((path for path in (root, *root.parents) if path.exists()), root)
    if nearest.exists() and not nearest.is_dir():
        raise ConfigError(f"{root}: {'the lake root' if nearest == root else nearest} is a file; give `lake` a folder")


def _anchored(config: CoreConfig, folder: Path) -> CoreConfig:
    def anchor(text: str) -> str:
        return str((folder / text).resolve()) if text else ""

    tls = config.broker.tls
    if tls is not None:
        tls = CoreTlsConfig(anchor(tls.ca), anchor(tls.cert), anchor(tls.key))
    return msgspec.structs.replace(
        config,
        lake=anchor(config.lake),
        policies=anchor(config.policies),
        contracts=anchor(config.contracts),
        models=anchor(config.models),
        director=msgspec.structs.replace(config.director, keys=anchor(config.director.keys)),
        broker=msgspec.structs.replace(config.broker, tls=tls),
    )
