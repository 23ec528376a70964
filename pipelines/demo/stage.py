"""Run the demo's plant (broker, core, agents and devices) and watch it: reports of devices, and counts of the Delta tables.

A TCP proxy stands between agents and broker, so that the network can be taken away and given back.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import paho.mqtt.client as mqtt
import structlog
from deltalake import DeltaTable

from catchment.runtime.clock import Clock
from catchment.runtime.mqtt_link import close_connection, make_client, open_connection
from pipelines.demo.processes import ProcessGroup, Program
from pipelines.demo.site import AgentPlan, DemoSite
from pipelines.demo.view import DemoCommands, DemoView, DeviceLine, Snapshot, StreamLine, command_line
from pipelines.errors import PipelineError
from schemas.errors import SchemaError
from schemas.reported import ModelReport, Reported, decode_reported
from schemas.topics import DEFAULT_NAMESPACE

HOST = "127.0.0.1"
CHUNK_BYTES = 64 * 1024

log = structlog.get_logger(__name__)

POLL_S = 0.4


class Proxy:
    """Forwards a loopback port of its own to `target_port`, until told to drop the network.

    While the network is down every connection is closed and new ones are refused; `up` listens on the same port again.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="demo-proxy", daemon=True)
        self._server: asyncio.Server | None = None
        self._writers: set[asyncio.StreamWriter] = set()
        self.port = 0

    def __enter__(self) -> Self:
        """Listen."""
        self._thread.start()
        self.up()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Close every connection and end the thread."""
        self.down()
        asyncio.run_coroutine_threadsafe(self._end_tasks(), self._loop).result(10)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()

    def up(self) -> None:
        """Give the network: listen, on the same port as before."""
        asyncio.run_coroutine_threadsafe(self._up(), self._loop).result(10)

    def down(self) -> None:
        """Take the network: close what is open, refuse what comes."""
        asyncio.run_coroutine_threadsafe(self._down(), self._loop).result(10)

    async def _up(self) -> None:
        if self._server is None:
            self._server = await asyncio.start_server(self._carry, HOST, self.port, limit=CHUNK_BYTES)
            self.port = self._server.sockets[0].getsockname()[1]

    async def _down(self) -> None:
        if self._server is not None:
            self._server.close()
            self._server = None
        for writer in self._writers:
            writer.transport.abort()  # not close(): what is buffered is lost, as it is when a cable is pulled
        await asyncio.sleep(0)

    async def _end_tasks(self) -> None:
        tasks = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._writers.add(writer)
        try:
            there_reader, there_writer = await asyncio.open_connection(HOST, self._target_port)
        except OSError:
            self._hang_up(writer)  # the broker is away: the agent sees a refused connection and tries again
            return
        self._writers.add(there_writer)
        try:
            await asyncio.gather(_pump(reader, there_writer), _pump(there_reader, writer))
        finally:
            self._hang_up(writer)
            self._hang_up(there_writer)

    def _hang_up(self, writer: asyncio.StreamWriter) -> None:
        self._writers.discard(writer)
        writer.transport.abort()


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    # A connection that is reset ends both ways; which side did it does not matter to a cable.
    with contextlib.suppress(OSError):
        while data := await source.read(CHUNK_BYTES):
            sink.write(data)
            await sink.drain()
    sink.transport.abort()


class Watch:
    """Listens to the devices' reports; asks the lake when asked."""

    def __init__(self, host: str, port: int, lake: Path, streams: Sequence[str]) -> None:
        self._host, self._port = host, port
        self._lake = lake
        self._streams = tuple(streams)
        self._lock = threading.Lock()
        self._reports: dict[str, Reported] = {}
        self._client = make_client("demo-watch", mqtt.Client, reconnects=True)
        self._client.on_connect = self._on_connect
        self._client.on_message = self._on_message

    def __enter__(self) -> Self:
        """Connect."""
        open_connection(self._client, self._host, self._port)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Disconnect."""
        close_connection(self._client)

    def _on_connect(self, client: mqtt.Client, *_: Any) -> None:
        client.subscribe(f"{DEFAULT_NAMESPACE}/reported/+", qos=1)

    def _on_message(self, _client: mqtt.Client, _data: Any, message: mqtt.MQTTMessage) -> None:
        try:
            report = decode_reported(bytes(message.payload))
        except SchemaError as error:
            log.warning("report_unreadable", topic=message.topic, error=str(error))
            return
        with self._lock:
            self._reports[report.device] = report

    def snapshot(self, *, network_is_up: bool = True) -> Snapshot:
        """Return the current figures."""
        with self._lock:
            reports = sorted(self._reports.values(), key=lambda report: report.device)
        devices = tuple(
            DeviceLine(report.device, book.stream, book.captured, book.settled, book.spooled, sum(book.dropped.values()))
            for report in reports
            for book in report.books
        )
        return Snapshot(devices, tuple(self._count(stream) for stream in self._streams), network_is_up)

    def models(self) -> dict[str, ModelReport]:
        """Device -> the model it says it runs, of those that run one."""
        with self._lock:
            return {
                device: model for device, report in self._reports.items() for model in report.models if model.state == "active"
            }

    def _count(self, stream: str) -> StreamLine:
        folder = self._lake / "streams" / stream
        if not (folder / "_delta_log").is_dir():
            return StreamLine(stream, 0, 0)
        table = DeltaTable(folder)
        actions = table.get_add_actions(flatten=True)
        names = actions.schema.names
        committed = sum(actions.column("num_records").to_pylist()) if len(actions.column("path")) else 0
        predicted = 0
        if "null_count.predicted_score" in names:
            nulls = actions.column("null_count.predicted_score").to_pylist()
            predicted = committed - sum(count or 0 for count in nulls)
        return StreamLine(stream, committed, predicted)


class NotReachedError(PipelineError):
    """A state that the demo waits for was not reached in time; the message names it and the current one."""


@dataclass(slots=True)
class DemoStage:
    """Everything that runs, and the view on it."""

    site: DemoSite
    group: ProcessGroup
    proxy: Proxy
    watch: Watch
    view: DemoView
    clock: Clock
    commands: DemoCommands
    network_is_up: bool = True

    def start_core(self) -> Program:
        """Start bridge, run loop and model server."""
        return self.group.start("core", command_line("catchment", "up", "-c", str(self.site.core_config)))

    def start_agents(self, agents: Sequence[AgentPlan]) -> list[Program]:
        """Start the agents."""
        return [
            self.group.start(agent.device, command_line("edge-agent", "run", "-c", str(self.site.agent_config(agent.device))))
            for agent in agents
        ]

    def start_device(self, name: str, command: Sequence[str]) -> Program:
        """Start a simulated device that is not its agent's own child."""
        return self.group.start(name, command)

    def snapshot(self) -> Snapshot:
        """Return the current figures, also shown, and check that all programs still run.

        Raises:
            ProgramFailedError: one has failed.
        """
        self.group.check()
        found = self.watch.snapshot(network_is_up=self.network_is_up)
        self.view.show(found)
        return found

    def pass_time(self, seconds: float) -> None:
        """Watch for so long."""
        until_s = self.clock.monotonic_s() + seconds
        while self.clock.monotonic_s() < until_s:
            self.snapshot()
            self.clock.sleep(POLL_S)

    def wait_for(self, reached: Callable[[Snapshot], bool], what: str, seconds: float) -> Snapshot:
        """Watch until something is so.

        Raises:
            NotReachedError: it is not, after so many seconds.
        """
        until_s = self.clock.monotonic_s() + seconds
        while True:
            found = self.snapshot()
            if reached(found):
                return found
            if self.clock.monotonic_s() > until_s:
                raise NotReachedError(f"{what}: not within {seconds:.0f} s; {found}; the logs are in {self.site.logs}")
            self.clock.sleep(POLL_S)

    def drop_network(self, seconds: float) -> None:
        """Take the network away from the agents for a while."""
        self.proxy.down()
        self.network_is_up = False
        self.view.event(f"the network is down: the agents keep capturing into their spools ({seconds:.0f} s)", "bold red")
        self.pass_time(seconds)
        self.proxy.up()
        self.network_is_up = True
        self.view.event("the network is back: the agents send what they kept", "bold green")


def tallies(folder: Path) -> dict[str, int]:
    """Device program -> how many samples it says it made."""
    return {path.name: int(path.read_text(encoding="ascii")) for path in folder.iterdir() if not path.name.startswith(".")}
