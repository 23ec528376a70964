"""The tables of the configuration: broker, uplink, health, director, policy; a source's report and inspectors."""

import ipaddress
import math
import re
from pathlib import Path

import msgspec

from edge_agent.errors import ConfigError
from schemas.contract import NESTED_TYPES, NUMERIC_TYPES, Contract
from schemas.ids import DeviceId
from schemas.inspectors import ON_DEVICE
from schemas.parts import MAX_PART_BYTES
from schemas.signed_document import PUBLIC_KEY_HEX
from schemas.topics import DEFAULT_NAMESPACE, Topics

KIB = 1024
MIB = 1024 * KIB
MAX_PRIORITY = 1_000_000
MAX_KEYS = 4
_TIME_OF_DAY = re.compile(r"([01][0-9]|2[0-3]):[0-5][0-9]")
_WEB_PATH = re.compile(r"/[A-Za-z0-9._~/-]{0,200}")


def within(name: str, value: float, low: float, high: float) -> None:
    """Check a number.

    Raises:
        ValueError: it is outside; the message names it.
    """
    if not low <= value <= high:
        raise ValueError(f"{name} {value} must be within {low} and {high}")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """A table of the file. A key that is not listed is an error: a misspelt key must not be a silent default."""


class TlsConfig(Section, frozen=True):
    """Mutual TLS 1.3: the broker's authority, this device's certificate (its common name is the device id) and key."""

    ca: Path
    cert: Path
    key: Path


class BrokerConfig(Section, frozen=True):
    """The broker's address. Without `tls` only a loopback address is accepted.

    Attributes:
        transport: "tcp", or "websockets" where only the web's ports are open.
        path: of the WebSocket.
    """

    host: str = "127.0.0.1"
    port: int = 1883
    namespace: str = DEFAULT_NAMESPACE
    keepalive_s: int = 30
    transport: str = "tcp"
    path: str = "/mqtt"
    tls: TlsConfig | None = None

    def __post_init__(self) -> None:
        within("port", self.port, 1, 65_535)
        within("keepalive_s", self.keepalive_s, 5, 3_600)
        Topics(self.namespace)
        if self.transport not in ("tcp", "websockets"):
            raise ValueError(f"transport {self.transport!r} must be tcp or websockets")
        if not _WEB_PATH.fullmatch(self.path):
            raise ValueError(f"path {self.path[:80]!r} must start with / and be plain")
        if self.tls is None and not is_loopback(self.host):
            raise ValueError(
                f"host {self.host!r} is not on this machine, and samples never cross a network in clear:"
                " add [broker.tls] with ca, cert and key"
            )


class ScheduleConfig(Section, frozen=True, rename={"start": "from", "end": "to"}):
    """Hours of the day, in the device's own time zone, in which another rate and least priority hold. May pass midnight."""

    start: str
    end: str
    bytes_per_s: int = 0
    min_priority: int = 0

    def __post_init__(self) -> None:
        for name, value in (("from", self.start), ("to", self.end)):
            if not _TIME_OF_DAY.fullmatch(value):
                raise ValueError(f"{name} {value[:40]!r} must be a time of day such as 22:30")
        if self.start == self.end:
            raise ValueError(f"from and to are both {self.start}: leave the schedule out and set the values in [uplink]")
        _check_rate(self.bytes_per_s, self.min_priority)


class UplinkConfig(Section, frozen=True):
    """Limits of the uplink: bytes under way, resending, and its share of the link.

    Attributes:
        window_bytes: bodies sent that the broker has not acknowledged; they are held in memory.
        unsettled_bytes: bodies sent that no receipt covers yet; beyond it sending waits for the core.
        resend_after_s: what is not settled by then is sent again (each time after twice as long).
        clock_wait_s: how long samples of a clock that is not set wait for it, so that they leave with what corrects their times.
        sync_wait_s: how long samples of a clock that may be right wait, after the agent's start, for the kernel to say so.
        envelope_bytes: a batch of samples is cut into bodies of about this size.
        part_bytes: a large payload is cut into parts of this size.
        report_interval_s: how often the device tells its books, when they changed.
        bytes_per_s: what may be sent, on average; 0: as fast as it goes.
        min_priority: a metered link: what is worth less waits in the spool.
        fresh_share: of what is sent while older samples wait, the share that goes to new ones.
        schedule: hours with other values of `bytes_per_s` and `min_priority`; the first that holds counts.
    """

    window_bytes: int = 4 * MIB
    unsettled_bytes: int = 256 * MIB
    resend_after_s: float = 60.0
    clock_wait_s: float = 3_600.0
    sync_wait_s: float = 0.0
    envelope_bytes: int = 256 * KIB
    part_bytes: int = MIB
    report_interval_s: float = 5.0
    bytes_per_s: int = 0
    min_priority: int = 0
    fresh_share: float = 0.5
    schedule: tuple[ScheduleConfig, ...] = ()

    def __post_init__(self) -> None:
        within("window_bytes", self.window_bytes, 64 * KIB, 1024 * MIB)
        within("unsettled_bytes", self.unsettled_bytes, self.window_bytes, 2**50)
        within("resend_after_s", self.resend_after_s, 0.1, 86_400)
        within("clock_wait_s", self.clock_wait_s, 0, 31_536_000)
        within("sync_wait_s", self.sync_wait_s, 0, 31_536_000)
        within("envelope_bytes", self.envelope_bytes, 4 * KIB, 64 * MIB)
        within("part_bytes", self.part_bytes, 4 * KIB, MAX_PART_BYTES)
        within("report_interval_s", self.report_interval_s, 0.1, 3_600)
        within("fresh_share", self.fresh_share, 0.0, 1.0)
        _check_rate(self.bytes_per_s, self.min_priority)


class HealthConfig(Section, frozen=True):
    """`/live`, `/ready` and `/metrics` on the loopback.

    Attributes:
        port: where; 0: nowhere.
        stalled_after_s: a thread that did not come round for so long is stuck: not live.
        ready_within_s: samples wait, and none was settled for so long: not ready.
        heartbeat_s: how often the agent's own figures and books become a sample of `agent_heartbeat`; 0: never.
    """

    port: int = 0
    stalled_after_s: float = 30.0
    ready_within_s: float = 300.0
    heartbeat_s: float = 0.0

    def __post_init__(self) -> None:
        within("port", self.port, 0, 65_535)
        within("stalled_after_s", self.stalled_after_s, 5, 3_600)
        within("ready_within_s", self.ready_within_s, 1, 86_400 * 7)
        if self.heartbeat_s:
            within("heartbeat_s", self.heartbeat_s, 1, 86_400)


class DirectorConfig(Section, frozen=True):
    """The keys whose orders this device follows: desired models, rules and all later kinds of documents.

    Attributes:
        public_keys: Ed25519 keys, 64 hexadecimal digits each. Two during a change of keys.
        file: a file with such keys, one a line, as `edge-agent enrol --director` writes it.
        cohorts: names of the groups that this device belongs to, next to `all`.
    """

    public_keys: tuple[str, ...] = ()
    file: Path | None = None
    cohorts: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_keys("public_keys", self.public_keys)
        if not self.public_keys and self.file is None:
            raise ValueError("public_keys or file is missing: without a key no order could ever be followed")
        for name in self.cohorts:
            DeviceId(name)


class PolicyConfig(Section, frozen=True):
    """Rules from the core: Ed25519 keys that sign them and nothing else, 64 hexadecimal digits each.

    Attributes:
        public_key: the key.
        public_keys: more of them, while the key is being changed.
    """

    public_key: str
    public_keys: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        _check_keys("public_key", (self.public_key,))
        _check_keys("public_keys", self.public_keys)

    @property
    def keys(self) -> tuple[str, ...]:
        """All of them."""
        return tuple(dict.fromkeys((self.public_key, *self.public_keys)))


def is_loopback(host: str) -> bool:
    """Whether a host is this machine."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_keys(name: str, keys: tuple[str, ...]) -> None:
    if len(keys) > MAX_KEYS:
        raise ValueError(f"{name} holds {len(keys)} keys; at most {MAX_KEYS} are trusted at a time")
    if not all(PUBLIC_KEY_HEX.fullmatch(key) for key in keys):
        raise ValueError(f"{name} must be 64 hexadecimal digits in lower case: the raw Ed25519 public key")


def _check_rate(bytes_per_s: int, min_priority: int) -> None:
    if bytes_per_s:
        within("bytes_per_s", bytes_per_s, 128, 2**40)
    within("min_priority", min_priority, 0, MAX_PRIORITY)


class InspectConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[[source.inspect]]`.

    Attributes:
        use: image or text.
        column: of text: the column whose texts are counted; without it the payload.
    """

    use: str
    column: str = ""

    def __post_init__(self) -> None:
        if self.use not in ON_DEVICE:
            raise ValueError(f"inspect: use {self.use[:80]!r} is not one of {', '.join(ON_DEVICE)}")


class ReportConfig(msgspec.Struct, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """`[source.report]`.

    Attributes:
        deadband: numeric column -> by how much it must change, in its own unit, to be reported.
        change_only: columns that are reported when their value is another.
        key: columns that name what is observed (a signal, a camera): each value is watched by itself.
        max_interval_s: report at least so often, by event time; 0: only changes.
    """

    deadband: dict[str, float] = {}
    change_only: tuple[str, ...] = ()
    key: tuple[str, ...] = ()
    max_interval_s: float = 0.0

    def __post_init__(self) -> None:
        if not self.deadband and not self.change_only:
            raise ValueError("report: name columns under deadband or change_only")
        if any(not 0 <= width < math.inf for width in self.deadband.values()):
            raise ValueError("report: a deadband is a number from 0 on")
        if not 0 <= self.max_interval_s < math.inf:
            raise ValueError("report: max_interval_s is a number of seconds from 0 on")

    def check_against(self, contract: Contract) -> None:
        """Whether the contract has these columns.

        Raises:
            ConfigError: it has not, or a deadband is on a column that is no number.
        """
        if contract.payload is not None:
            raise ConfigError(f"source.report is for telemetry: stream {contract.name} has a payload with each sample")
        for name in (*self.deadband, *self.change_only, *self.key):
            column = contract.column(name)
            if column is None:
                known = ", ".join(column.name for column in contract.columns)
                raise ConfigError(f"source.report: {name!r} is no column of contract {contract.name} ({known})")
            if name in self.key and column.type in NESTED_TYPES:
                raise ConfigError(f"source.report: key {name!r}: the column is {column.type}; a key is a plain value")
            if name in self.deadband and column.type not in NUMERIC_TYPES:
                raise ConfigError(f"source.report: deadband {name!r}: the column is {column.type}, not a number")
