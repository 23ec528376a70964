"""Answers of a model to programs on this device, without waiting for the core: a socket, a program's input, a topic.

Each answer is one JSON object. Nothing here blocks the thread that asks the model: what a consumer does not take at once is
dropped and counted, because an old answer is of no use to an ejector.
"""

import os
import secrets
import socket
import stat
import subprocess
import threading
import time
from collections import deque
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol, TypeAlias

import msgspec
import structlog
from paho.mqtt.client import MQTT_ERR_SUCCESS

from catchment.runtime.mqtt_link import PubackClient, make_client
from edge_agent.errors import ConfigError
from edge_agent.sections import is_loopback
from edge_agent.sources.api import Scalar

_MAX_CLIENTS = 16
_MAX_BYTES = 64 * 1024
_RESTART_S = 1.0
_KEPT_DELAYS = 1_000

log = structlog.get_logger(__name__)


class SocketConsumer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="socket", tag_field="kind"):
    """Programs that connect to a Unix socket (SOCK_SEQPACKET) get one packet for each answer.

    Attributes:
        path: of the socket; made with mode 0660.
        labels: only answers with one of these labels; empty: all.
        min_score: only answers at least so sure.
    """

    path: str
    labels: tuple[str, ...] = ()
    min_score: float = 0.0


class ExecConsumer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="exec", tag_field="kind"):
    """A program that the agent starts, and starts again when it ends, gets one line on its input for each answer."""

    command: tuple[str, ...]
    labels: tuple[str, ...] = ()
    min_score: float = 0.0

    def __post_init__(self) -> None:
        if not self.command:
            raise ConfigError("model: notify: exec needs a command")


class TopicConsumer(msgspec.Struct, frozen=True, forbid_unknown_fields=True, tag="topic", tag_field="kind"):
    """A topic of the device's own broker, QoS 0."""

    topic: str
    host: str = "127.0.0.1"
    port: int = 1883
    labels: tuple[str, ...] = ()
    min_score: float = 0.0

    def __post_init__(self) -> None:
        if not self.topic or any(sign in self.topic for sign in "+#\0") or len(self.topic) > 1_000:
            raise ConfigError(f"model: notify: topic {self.topic[:80]!r} is no topic to publish to")
        if not is_loopback(self.host):
            raise ConfigError(f"model: notify: host {self.host!r} is not on this machine; answers would cross a network in clear")


ConsumerConfig: TypeAlias = SocketConsumer | ExecConsumer | TopicConsumer


class LocalAnswer(msgspec.Struct, frozen=True, omit_defaults=True):
    """One answer, as a consumer gets it.

    Attributes:
        stream: of the sample.
        event_time_us: of the sample, microseconds since 1970.
        model: which model.
        version: its version.
        columns: what it says, by column without prefix.
        age_ms: how long ago the sample was captured, by the monotonic clock.
    """

    stream: str
    event_time_us: int
    model: str
    version: int
    columns: dict[str, Any]
    age_ms: float


class _Way(Protocol):
    """A way to a consumer."""

    def send(self, body: bytes) -> int:
        """Send one answer; how many consumers did not take it."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class LocalConsumers:
    """All consumers of one model's answers. Any thread may call.

    Args:
        configs: who gets which answers.
        restart_s: how long after its start a program that ended is started again, at the earliest.

    Attributes:
        counts: answers `notified` and `dropped`.

    Raises:
        ConfigError: a socket cannot be made, or a program not be started.
    """

    def __init__(self, configs: tuple[ConsumerConfig, ...], restart_s: float = _RESTART_S) -> None:
        self._ways = [(config, _open(config, restart_s)) for config in configs]
        self._delays_ms: deque[float] = deque(maxlen=_KEPT_DELAYS)
        self._lock = threading.Lock()
        self.counts = {"notified": 0, "dropped": 0}

    def send(self, answer: LocalAnswer, model_ms: float) -> None:
        """Give an answer to those who want it. Never blocks.

        Args:
            answer: what the model says.
            model_ms: of its age, what the model itself took.
        """
        body = msgspec.json.encode(answer)
        with self._lock:
            for config, way in self._ways:
                if _is_wanted(config, answer.columns):
                    dropped = way.send(body) if len(body) <= _MAX_BYTES else 1
                    self.counts["dropped" if dropped else "notified"] += 1
            self._delays_ms.append(answer.age_ms - model_ms)

    def delay_p95_ms(self) -> float:
        """Of the last answers, the age beyond the model's own time that 95 % stay below; 0 without answers."""
        with self._lock:
            found = sorted(self._delays_ms)
        return found[int(len(found) * 0.95)] if found else 0.0

    def close(self) -> None:
        """Close sockets and connections, end programs."""
        for _, way in self._ways:
            way.close()


def _is_wanted(config: ConsumerConfig, columns: Mapping[str, Scalar]) -> bool:
    label, score = columns.get("predicted_label"), columns.get("predicted_score")
    if config.labels and label not in config.labels:
        return False
    return not config.min_score or (isinstance(score, float) and score >= config.min_score)


def _open(config: ConsumerConfig, restart_s: float) -> _Way:
    if isinstance(config, SocketConsumer):
        return _SocketWay(Path(config.path))
    return _ExecWay(config.command, restart_s) if isinstance(config, ExecConsumer) else _TopicWay(config)


class _SocketWay:
    """A listening Unix socket."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._clients: list[socket.socket] = []
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        self._listener.setblocking(False)
        try:
            # Left behind by an agent that was killed; the state folder's lock keeps a second agent away.
            if path.exists() and stat.S_ISSOCK(path.lstat().st_mode):
                path.unlink()
            self._listener.bind(str(path))
            path.chmod(0o660)
            self._listener.listen(_MAX_CLIENTS)
        except OSError as error:
            self._listener.close()
            raise ConfigError(
                f"model: notify: socket {path}: {error.strerror or error}; choose a path in a folder that is there"
            ) from error

    def send(self, body: bytes) -> int:
        """Send to all who have connected."""
        with suppress(BlockingIOError):
            while len(self._clients) < _MAX_CLIENTS:
                client, _ = self._listener.accept()
                client.setblocking(False)
                self._clients.append(client)
        dropped, left = 0, []
        for client in self._clients:
            try:
                client.send(body, socket.MSG_NOSIGNAL)
            except BlockingIOError:
                dropped += 1
            except OSError:
                client.close()  # it has gone
                continue
            left.append(client)
        self._clients = left
        return dropped

    def close(self) -> None:
        """Close all, and remove the path."""
        for each in (*self._clients, self._listener):
            each.close()
        with suppress(OSError):
            self._path.unlink()


class _ExecWay:
    """A program with a pipe to its input."""

    def __init__(self, command: tuple[str, ...], restart_s: float) -> None:
        self._command = command
        self._restart_s = restart_s
        self._process: subprocess.Popen[bytes] | None = None
        self._rest = b""
        self._again_s = 0.0
        self._start()
        if self._process is None:
            raise ConfigError(f"model: notify: {command[0]} cannot be started; correct the command")

    def send(self, body: bytes) -> int:
        """Write a line; one of which only a part was taken is finished before the next."""
        if self._process is None or self._process.poll() is not None:
            self._start()
        if self._process is None or not self._write(self._rest):
            return 1
        return 0 if self._write(body + b"\n", is_new=True) else 1

    def close(self) -> None:
        """Close its input, and end it if it does not end by itself."""
        if self._process is not None:
            self._close_input()
            try:
                self._process.wait(1.0)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def _write(self, body: bytes, *, is_new: bool = False) -> bool:
        """Whether all of it was taken, or so much that the rest will be."""
        assert self._process is not None
        assert self._process.stdin is not None
        if not body:
            return True
        try:
            written = os.write(self._process.stdin.fileno(), body)
        except BlockingIOError:
            return False
        except OSError:
            self._rest = b""
            return False  # it has ended, and is started again
        self._rest = body[written:]
        return is_new or not self._rest

    def _start(self) -> None:
        now_s = time.monotonic()
        if now_s < self._again_s:
            return
        self._again_s, self._rest = now_s + self._restart_s, b""
        if self._process is not None:
            log.warning("local_consumer_ended", command=self._command[0], exit_code=self._process.returncode)
            self._close_input()
            self._process = None
        try:
            self._process = subprocess.Popen(
                self._command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, bufsize=0, start_new_session=True
            )
        except OSError as error:
            log.warning("local_consumer_not_started", command=self._command[0], reason=str(error))
            return
        assert self._process.stdin is not None
        os.set_blocking(self._process.stdin.fileno(), False)

    def _close_input(self) -> None:
        if self._process is not None and self._process.stdin is not None:
            with suppress(OSError):
                self._process.stdin.close()


class _TopicWay:
    """A connection to the device's own broker, on paho's thread."""

    def __init__(self, config: TopicConsumer) -> None:
        self._topic = config.topic
        self._client = make_client(f"answers-{secrets.token_hex(4)}", PubackClient, reconnects=True)
        self._client.max_queued_messages_set(1)
        self._client.connect_async(config.host, config.port)
        self._client.loop_start()

    def send(self, body: bytes) -> int:
        """Publish, if there is a connection."""
        if not self._client.is_connected():
            return 1
        return int(self._client.publish(self._topic, body, qos=0).rc != MQTT_ERR_SUCCESS)

    def close(self) -> None:
        """Disconnect."""
        self._client.disconnect()
        self._client.loop_stop()
