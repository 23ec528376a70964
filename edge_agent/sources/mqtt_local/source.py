"""A source for small devices: what they publish on a broker next to the agent becomes samples.

    kind = "mqtt-local"
    host = "127.0.0.1"
    port = 1883
    topics = ["sensors/+/telemetry"]
    format = "json"                 # an object is a sample, a list of objects several; raw: the body is the payload
    topic_column = "file_name"      # where the topic goes
    time_column = "event_time"      # RFC 3339 or seconds; absent: the time of arrival
    rename = { v = "speed_mps" }
    client_id = "catchment-sensors" # default: catchment- and the stream
    username = "agent"
    password_file = "/etc/catchment/local.password"
    ca = "/etc/catchment/local-ca.pem"

At QoS 1 a message is acknowledged once its samples are durable; the broker keeps the session and sends again what was not.
One whose time a setting would make readable (`time_zone`, `time_unit`, `time_format`) is parked on the device and read again
at the next start of the source; where the contract redacts or the spool is encrypted, it stays with the broker instead.
What was stored and not acknowledged when the agent was killed is known by packet id and checksum, and not stored twice.
"""

import hashlib
import secrets
import zlib
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.mqtt_local.parked import ParkedMessage, ParkedMessages
from edge_agent.sources.mqtt_local.session import BrokerAccess, Received, Subscription
from edge_agent.sources.options import EventTimes, RowOptions, check_rename, read_options, unreadable
from edge_agent.sources.rows.mapping import ColumnMapper, MappedRows, keep_rows
from edge_agent.sources.rows.tables import objects_chunk, read_json
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("host", "port", "client_id")

_MAX_PASSWORD_BYTES = 4_096
_MAX_TOPIC_BYTES = 65_535


class MqttLocalOptions(RowOptions, frozen=True, forbid_unknown_fields=True, kw_only=True):
    """The options of a local broker; the module's docstring shows each."""

    topics: tuple[str, ...]
    host: str = "127.0.0.1"
    port: int = 1883
    format: Literal["json", "raw"] = "json"
    topic_column: str = ""
    time_column: str = EVENT_TIME
    client_id: str = ""
    username: str = ""
    password_file: str = ""
    ca: str = ""
    keepalive_s: int = 30
    session_expiry_s: int = 7 * 86_400
    max_message_bytes: int = 1024 * 1024
    max_waiting: int = 200
    wait_ms: int = 100


class Given(msgspec.Struct, frozen=True, array_like=True):
    """A message whose samples were stored: packet id, or its number in the park below nothing, and checksum."""

    id: int
    crc: int


_Timed = tuple[Received, list[dict[str, object]], list[int | None]]


class MqttLocalSource(MappedRows):
    """Subscribes; see the module.

    Attributes:
        rejected: reason -> messages and cells refused.
    """

    def __init__(
        self,
        options: MqttLocalOptions,
        contract: Contract,
        clock: Clock,
        position: bytes | None,
        *,
        is_trial: bool = False,
        park: Path | None = None,
    ) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects("mqtt-local")
        self._mapper = ColumnMapper(contract, options.rename, frozenset(), self._rejects, None, options.numbers, options.times)
        self._event_times = EventTimes(options.times, self._rejects, is_in_order=False)
        self._stored = self._resume(position)
        self._under_way: deque[tuple[bytes, list[Received]]] = deque()
        renamed = [name for name, column in options.rename.items() if column == EVENT_TIME]
        self._time_column = renamed[0] if renamed else options.time_column
        self._held: set[Given] = set()
        self._needs: set[str] = set()
        client_id = options.client_id or f"catchment-{contract.name}"
        if is_trial:
            client_id = f"catchment-try-{secrets.token_hex(6)}"
        self._parked = None if park is None else ParkedMessages(park / hashlib.sha256(client_id.encode()).hexdigest()[:16])
        self._again = self._parked_before()
        access = BrokerAccess(
            host=options.host,
            port=options.port,
            client_id=client_id,
            username=options.username,
            password=_password(options.password_file),
            ca=options.ca,
            keepalive_s=options.keepalive_s,
            session_expiry_s=0 if is_trial else options.session_expiry_s,
            receive_maximum=options.max_waiting,
            is_trial=is_trial,
        )
        self._subscription = Subscription(access, options.topics, options.max_message_bytes)

    def _resume(self, position: bytes | None) -> set[Given]:
        if position is None:
            return set()
        try:
            return set(msgspec.json.decode(position, type=list[Given]))
        except msgspec.MsgspecError:
            self._rejects.count("file: the stored position is unreadable; messages may come twice")
            return set()

    @property
    def complaint(self) -> str:
        """Describe the messages that are not acknowledged, or parked, until a setting makes them readable."""
        waiting = len(self._held) + (0 if self._parked is None else len(self._parked))
        if not waiting or not self._needs:
            return ""
        where = "at the broker" if self._held else "on this device"
        return f"{waiting:,} messages wait {where}: {unreadable('mqtt-local', dict.fromkeys(sorted(self._needs), 1))}"

    def _parked_before(self) -> deque[Received]:
        """Load messages parked under another configuration, to be read again; drop those stored since."""
        if self._parked is None:
            return deque()
        messages = {message.number: _as_received(message) for message in self._parked.messages}
        known = {number for number, message in messages.items() if _given(message) in self._stored}
        self._parked.remove(known)
        return deque(message for number, message in messages.items() if number not in known)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The samples of the messages that have come; None where none comes within `wait_ms`.

        Raises:
            SourceError: the broker is gone, or refuses.
        """
        messages = [self._again.popleft() for _ in range(min(max_samples, len(self._again)))]
        if not messages:
            taken = self._subscription.take(max_samples, self._options.wait_ms / 1000)
            messages = [message for message in taken if not self._is_known(message)]
        found = [(message, rows) for message in messages if (rows := self._rows(message))]
        timed = self._timed(found)
        if not timed:
            return None
        batch = self._batch(timed)
        if batch is None:
            self._settle([message for message, _, _ in timed])
        return batch

    def _timed(self, found: Sequence[tuple[Received, list[dict[str, object]]]]) -> list[_Timed]:
        """The messages with the times of their rows; those that a setting would make readable are kept aside."""
        now_us = self._clock.now_ms() * 1000
        timed: list[_Timed] = []
        aside: list[Received] = []
        for message, rows in found:
            cells = [row.get(self._time_column) for row in rows]
            at_us = message.at_us or now_us
            reported = iter(self._event_times.read([cell for cell in cells if cell is not None], at_us))
            times = [at_us if cell is None else next(reported) for cell in cells]
            if self._event_times.needs:
                self._needs.update(self._event_times.needs)
                aside.append(message)
            else:
                timed.append((message, rows, times))
        self._keep_aside([message for message in aside if message.id >= 0], now_us)
        return timed

    def _keep_aside(self, messages: Sequence[Received], now_us: int) -> None:
        """Park them; where that cannot be they stay with the broker, unacknowledged, and come again at the next connection."""
        if not messages:
            return
        if self._parked is not None and self._parked.add([(message.topic, message.body) for message in messages], now_us):
            for message in messages:
                self._subscription.acknowledge(message)
            return
        self._held.update(_given(message) for message in messages if message.id)  # at QoS 0 nothing is kept for anybody

    def _is_known(self, message: Received) -> bool:
        """Whether it was stored before and only not acknowledged."""
        if not message.is_again or _given(message) not in self._stored:
            return False
        self._stored.discard(_given(message))
        self._subscription.acknowledge(message)
        return True

    def _rows(self, message: Received) -> list[dict[str, object]]:
        """The samples of one message; a message without any is done with, and counted."""
        try:
            rows = self._decode(message)
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
            rows = []
        if not rows:
            self._rejects.count("row: message is no JSON object, nor a list of them", message.topic)
            self._settle([message])
        if self._options.topic_column:
            rows = [{**row, self._options.topic_column: message.topic} for row in rows]
        return rows

    def _decode(self, message: Received) -> list[dict[str, object]]:
        if self._options.format == "raw":
            return [{}]
        found = read_json(message.body.decode())
        items = found if isinstance(found, list) else [found]
        objects: list[dict[str, object]] = [item for item in items if isinstance(item, dict)]
        return objects if len(objects) == len(items) else []

    def _batch(self, timed: Sequence[_Timed]) -> SampleBatch | None:
        rows = [row for _, its, _ in timed for row in its]
        times = [time for _, _, its in timed for time in its]
        chunk = objects_chunk(rows)
        payloads: list[bytes | Path | None] | None = None
        if self._options.format == "raw":
            payloads = [message.body for message, _, _ in timed]
        chunk, good = keep_rows(chunk, times)
        if not good:
            return None
        columns: dict[str, Sequence[Scalar]] = self._mapper.convert(chunk, frozenset({self._time_column}))
        messages = [message for message, _, _ in timed if message.id]
        waiting = [message for _, its in self._under_way for message in its]
        position = msgspec.json.encode([_given(message) for message in (*waiting, *messages)])
        self._under_way.append((position, messages))
        is_own_clock = not any(row.get(self._time_column) is not None for row in rows)
        return SampleBatch(good, columns, payloads, position, agent_clock=is_own_clock)

    def _settle(self, messages: Sequence[Received]) -> None:
        """They are done with: the broker may forget them, and so may the park."""
        for message in messages:
            if message.id > 0:
                self._subscription.acknowledge(message)
        if self._parked is not None:
            self._parked.remove({-message.id for message in messages if message.id < 0})

    def stored(self, batch: SampleBatch) -> None:
        """The batch is durable: its messages, and those of batches before it, are acknowledged."""
        if not any(position == batch.position for position, _ in self._under_way):
            return
        while self._under_way:
            position, messages = self._under_way.popleft()
            self._settle(messages)
            if position == batch.position:
                return

    def close(self) -> None:
        """Leave; the broker keeps what comes meanwhile."""
        self._subscription.close()


def _as_received(message: ParkedMessage) -> Received:
    """A parked message as if it had just come; its number stands in the place of a packet id, below nothing."""
    return Received(-message.number, is_again=False, topic=message.topic, body=message.body, at_us=message.at_us)


def _given(message: Received) -> Given:
    return Given(message.id, zlib.crc32(message.body, zlib.crc32(message.topic.encode())))


def _check_filter(topic: str) -> None:
    """As MQTT 5 has it, 4.7.1: the wildcards stand for whole levels, `#` for all that follow."""
    levels = topic.split("/")
    is_right = 0 < len(topic.encode(errors="replace")) <= _MAX_TOPIC_BYTES and "\0" not in topic
    is_right &= all("#" not in level for level in levels[:-1]) and ("#" not in levels[-1] or levels[-1] == "#")
    is_right &= all("+" not in level or level == "+" for level in levels)
    if not is_right:
        raise ConfigError(
            f"source 'mqtt-local': topics: {topic[:80]!r} is no topic filter; + and # stand for whole levels, # last"
        )


def _password(file: str) -> str:
    if not file:
        return ""
    try:
        with Path(file).open("rb") as opened:
            return opened.read(_MAX_PASSWORD_BYTES).decode().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise SourceError(f"source 'mqtt-local': password_file {file} cannot be read: {error}") from error


def check(options: Mapping[str, object], contract: Contract) -> MqttLocalOptions:
    """The options of a local broker.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("mqtt-local", options, MqttLocalOptions, contract)
    if chosen.topic_column:
        check_rename("mqtt-local", {"topic": chosen.topic_column}, contract)
    if not chosen.topics:
        raise ConfigError("source 'mqtt-local': topics is empty; give filters like sensors/+/telemetry")
    for topic in chosen.topics:
        _check_filter(topic)
    if chosen.format == "raw" and contract.payload is None:
        raise ConfigError(f"source 'mqtt-local': format raw needs a payload, and contract {contract.name} has none")
    if not 1 <= chosen.max_waiting <= 65_535 or not 256 <= chosen.max_message_bytes <= 256 * 1024 * 1024:
        raise ConfigError("source 'mqtt-local': max_waiting is 1 to 65535, max_message_bytes 256 to 268435456")
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> MqttLocalSource:
    """Subscribe.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the broker does not answer.
    """
    return MqttLocalSource(check(options, contract), contract, clock, position)


def build_with_folder(
    options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None, folder: Path
) -> MqttLocalSource:
    """Subscribe; what a setting would make readable is parked in the folder, and not left with the broker.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the broker does not answer.
    """
    return MqttLocalSource(check(options, contract), contract, clock, position, park=folder)


def build_trial(options: Mapping[str, object], contract: Contract, clock: Clock) -> MqttLocalSource:
    """Listen next to the agent: in a session of its own that ends with it, and without acknowledging anything.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the broker does not answer.
    """
    return MqttLocalSource(check(options, contract), contract, clock, None, is_trial=True)


def names_given(options: Mapping[str, object], contract: Contract) -> tuple[str, ...] | None:
    """The names that a message gives where its body is the payload; None for JSON."""
    chosen = check(options, contract)
    return (chosen.topic_column,) * bool(chosen.topic_column) if chosen.format == "raw" else None
