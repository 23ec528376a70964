"""Show the demo while it runs (live tables on a terminal, plain lines elsewhere), and run the commands that a reader would."""

import shlex
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.text import Text

from catchment.runtime.clock import Clock
from catchment.runtime.terminal import PlainConsole, PlainTable, styled
from pipelines.errors import PipelineError

KEPT_EVENTS = 12
PLAIN_EVERY_S = 5.0

TIMEOUT_S = 180.0
_PROGRAMS = {"catchment": "pipelines.cli", "edge-agent": "edge_agent.cli"}


@dataclass(frozen=True, slots=True)
class DeviceLine:
    """A device's books of one stream, as it last reported them."""

    device: str
    stream: str
    captured: int
    settled: int
    spooled: int
    dropped: int


@dataclass(frozen=True, slots=True)
class StreamLine:
    """A stream in the lake: committed rows, and those of them that carry a prediction."""

    stream: str
    committed: int
    predicted: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """Figures of one moment."""

    devices: tuple[DeviceLine, ...] = ()
    streams: tuple[StreamLine, ...] = ()
    network_is_up: bool = True

    @property
    def captured(self) -> int:
        """Samples captured, over all devices."""
        return sum(line.captured for line in self.devices)

    @property
    def spooled(self) -> int:
        """Samples that wait on devices."""
        return sum(line.spooled for line in self.devices)

    @property
    def committed(self) -> int:
        """Rows in the lake."""
        return sum(line.committed for line in self.streams)


class DemoView:
    """Shows snapshots and events. `with View(...)` owns the terminal's lower part on a TTY."""

    def __init__(self, console: PlainConsole, clock: Clock) -> None:
        self._console = console
        self._clock = clock
        self._began_s = clock.monotonic_s()
        self._last_shown_s = self._began_s
        self._events: list[Text] = []
        self._snapshot = Snapshot()
        self._live = Live(console=console, auto_refresh=False, transient=True) if console.is_terminal else None

    def __enter__(self) -> Self:
        """Begin to show."""
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        """Give the terminal back."""
        if self._live is not None:
            self._live.stop()
            self._console.print(_picture(self._snapshot, self._events))

    def event(self, text: str, style: str = "") -> None:
        """Something happened."""
        line = styled(f"{self._clock.monotonic_s() - self._began_s:6.1f} s  {text}", style)
        self._events.append(line)
        if self._live is None:
            self._console.print(line, soft_wrap=True)
        else:
            self._redraw()

    def show(self, snapshot: Snapshot) -> None:
        """The newest state."""
        self._snapshot = snapshot
        if self._live is not None:
            self._redraw()
        elif self._clock.monotonic_s() - self._last_shown_s >= PLAIN_EVERY_S:
            self._last_shown_s = self._clock.monotonic_s()
            self.event(
                f"captured {snapshot.captured:,}, waiting on devices {snapshot.spooled:,}, in the lake {snapshot.committed:,}"
            )

    def _redraw(self) -> None:
        assert self._live is not None
        self._live.update(_picture(self._snapshot, self._events[-KEPT_EVENTS:]), refresh=True)


def _picture(snapshot: Snapshot, events: Sequence[Text]) -> Group:
    devices = PlainTable(
        title="on the devices" if snapshot.network_is_up else "on the devices (network is DOWN)", title_justify="left"
    )
    for name in ("device", "stream"):
        devices.add_column(name)
    for name in ("captured", "settled", "spooled", "dropped"):
        devices.add_column(name, justify="right")
    for line in snapshot.devices:
        figures = (line.captured, line.settled, line.spooled, line.dropped)
        devices.add_row(line.device, line.stream, *(f"{figure:,}" for figure in figures))
    streams = PlainTable(title="in the lake", title_justify="left")
    streams.add_column("stream")
    streams.add_column("committed rows", justify="right")
    streams.add_column("with a prediction", justify="right")
    for row in snapshot.streams:
        streams.add_row(row.stream, f"{row.committed:,}", f"{row.predicted:,}" if row.predicted else "")
    return Group(devices, streams, *events)


class CommandFailedError(PipelineError):
    """A command that the demo ran has failed; the message shows it and what it said."""


def command_line(program: str, *arguments: str) -> list[str]:
    """Return the command that starts one of the two programs with this interpreter, wherever its script was installed."""
    return [sys.executable, "-c", f"from {_PROGRAMS[program]} import main; main()", *arguments]


@dataclass(frozen=True, slots=True)
class DemoCommands:
    """Runs commands in one demo folder."""

    folder: Path
    view: DemoView

    def run(self, program: str, *arguments: str, is_shown: bool = True) -> str:
        """Run a command to its end.

        Returns:
            Its standard output.

        Raises:
            CommandFailedError: it failed, or took too long.
        """
        text = shlex.join([program, *arguments])
        if is_shown:
            self.view.event(f"$ {text}", "cyan")
        try:
            done = subprocess.run(
                command_line(program, *arguments), cwd=self.folder, capture_output=True, timeout=TIMEOUT_S, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CommandFailedError(f"{text}: not done after {TIMEOUT_S:.0f} s") from error
        if done.returncode != 0:
            output = (done.stderr or done.stdout).decode(errors="replace")[-2_000:]
            raise CommandFailedError(f"{text}: ended with {done.returncode}: {output}")
        return done.stdout.decode()
