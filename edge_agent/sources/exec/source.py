"""A source that runs a program: each line it prints is one sample, a JSON object.

    kind = "exec"
    command = ["/usr/bin/read-sensor", "--json"]
    rename = { v = "speed_mps" }
    restart = true                # false: a program that ends well ends the source

`event_time` (or the key that `time_column` names) is RFC 3339 text or a number since 1970 (absent: the time of reading),
`payload_b64` the payload, binary columns are base64. Times and numbers in other forms: see `edge_agent.sources.options`.

A program that can go on somewhere tells where in each line: `resume_position`, text of at most 4,096 bytes that means "up to
and with this sample". When it is started again it finds the last one that was stored in CATCHMENT_RESUME_POSITION. A
program that tells none starts from nothing, and what it printed and the agent had not stored is lost or its to repeat.
"""

import base64
import binascii
import contextlib
import os
import selectors
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import BinaryIO

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.errors import ConfigError, SourceAgainError, SourceEndedError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch
from edge_agent.sources.files.lines import LineBuffer
from edge_agent.sources.options import ZONE_GUESSED, EventTimes, RowOptions, read_options
from edge_agent.sources.rows.cells import tells_no_zone
from edge_agent.sources.rows.mapping import ColumnMapper, MappedRows, keep_rows
from edge_agent.sources.rows.tables import RawChunk, decode_object, objects_chunk
from schemas.contract import Contract
from schemas.envelope import EVENT_TIME

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("command",)

PAYLOAD_B64 = "payload_b64"
RESUME_POSITION = "resume_position"
RESUME_ENV = "CATCHMENT_RESUME_POSITION"
_MAX_POSITION_BYTES = 4_096
_CHUNK_BYTES = 64 * 1024
_TAIL_BYTES = 2_000
_LOOK_MS = 10


class ExecOptions(RowOptions, frozen=True, forbid_unknown_fields=True):
    """The options of a program; the module's docstring shows each. `wait_ms`: how long a read waits for a line."""

    command: list[str]
    restart: bool = False
    wait_ms: int = 100
    max_line_bytes: int = 16 * 1024 * 1024
    stop_ms: int = 2_000


class ExecSource(MappedRows):
    """Runs one program; see the module.

    Attributes:
        rejected: reason -> lines and cells refused.
    """

    def __init__(self, options: ExecOptions, contract: Contract, clock: Clock, position: bytes | None) -> None:
        self._options = options
        self._position = position
        self._clock = clock
        self._rejects = Rejects(f"exec {options.command[0]}")
        self._has_payload = contract.payload is not None
        self._mapper = ColumnMapper(contract, options.rename, frozenset(), self._rejects, None, options.numbers, options.times)
        # What a program printed cannot be read again: a time that tells no zone is taken as UTC, and counted.
        self._guesses_zone = options.times.zone is None
        form = msgspec.structs.replace(options, time_zone="UTC").times if self._guesses_zone else options.times
        self._event_times = EventTimes(form, self._rejects, is_in_order=False)
        self._lines = LineBuffer(options.max_line_bytes, self._rejects)
        self._stderr: BinaryIO = tempfile.TemporaryFile()  # noqa: SIM115  # lives as long as the program; closed in close()
        self._process = self._start()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._stdout, selectors.EVENT_READ)

    def _start(self) -> "subprocess.Popen[bytes]":
        resume_env = {} if self._position is None else {RESUME_ENV: self._position.decode()}
        try:
            process = subprocess.Popen(
                self._options.command,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=self._stderr,
                bufsize=0,
                # A group of its own: what a shell started ends with it, and Ctrl-C is the agent's alone to hear.
                start_new_session=True,
                env={name: value for name, value in os.environ.items() if name != RESUME_ENV} | resume_env,
            )
        except OSError as error:
            self._stderr.close()
            raise SourceError(f"{self._options.command[0]} cannot be started ({error.strerror}); correct `command`") from error
        assert process.stdout is not None
        self._stdout = process.stdout.fileno()
        os.set_blocking(self._stdout, False)
        return process

    def read(self, max_samples: int) -> SampleBatch | None:
        """The samples of the lines printed so far; None when there are none within `wait_ms`.

        Raises:
            SourceError: the program failed; the message ends with the last it wrote to standard error.
            SourceEndedError: it ended well and `restart` is off.
        """
        ended = False if self._lines.has_line else self._fill()
        lines = self._lines.take(max_samples, ended=ended)
        found = [item for line in lines if (item := self._object(line)) is not None]
        if not found:
            if ended and not lines:
                self._finish()
            return None
        return self._batch(objects_chunk(found))

    def _object(self, line: str) -> dict[str, object] | None:
        """A line's sample; None where it has none. What it tells of the position is taken out of it."""
        found = decode_object(line, self._rejects)
        if found is None or RESUME_POSITION not in found:
            return found
        reported = found.pop(RESUME_POSITION)
        if isinstance(reported, str) and "\0" not in reported and len(reported.encode("utf-8", "replace")) <= _MAX_POSITION_BYTES:
            self._position = reported.encode("utf-8", "replace")
        else:
            self._rejects.count(f"cell {RESUME_POSITION}: not a text of at most {_MAX_POSITION_BYTES} bytes", reported)
        return found or None

    def _fill(self) -> bool:
        """Take what the program has printed; whether it will print no more."""
        self._trim_stderr()
        if not self._selector.select(self._options.wait_ms / 1000):
            return False
        try:
            # No more than one line may hold: a program that never ends one must not keep the source from stopping.
            for _ in range(self._options.max_line_bytes // _CHUNK_BYTES + 1):
                piece = os.read(self._stdout, _CHUNK_BYTES)
                if not piece:
                    return True
                self._lines.add(piece)
        except BlockingIOError:
            return False
        return False

    def _batch(self, chunk: RawChunk) -> SampleBatch | None:
        now_us = self._clock.now_ms() * 1000
        time_column = self._options.time_column or _time_key(chunk, self._options.rename)
        cells = chunk.columns.get(time_column, [None] * chunk.rows)
        present = [cell for cell in cells if cell is not None]
        if self._guesses_zone:
            self._count_guesses(present)
        known = self._event_times.read(present, now_us)
        found = iter(known)
        chunk, times = keep_rows(chunk, [now_us if cell is None else next(found) for cell in cells])
        if not times:
            return None
        columns = self._mapper.convert(chunk, frozenset({time_column, PAYLOAD_B64}))
        payloads = self._payloads(chunk.columns.get(PAYLOAD_B64, [None] * chunk.rows)) if self._has_payload else None
        return SampleBatch(times, columns, payloads, self._position, agent_clock=not known)

    def _count_guesses(self, cells: Sequence[object]) -> None:
        guesses = sum(1 for cell in cells if tells_no_zone(cell))
        if guesses:
            self._rejects.count(ZONE_GUESSED, times=guesses)

    def _payloads(self, cells: Sequence[object]) -> list[bytes | None]:
        out: list[bytes | None] = []
        for cell in cells:
            try:
                out.append(base64.b64decode(cell, validate=True) if isinstance(cell, str) else None)
            except (binascii.Error, ValueError):
                self._rejects.count(f"cell {PAYLOAD_B64}: not base64 text", cell)
                out.append(None)
        return out

    def _finish(self) -> None:
        name = self._options.command[0]
        try:
            code = self._process.wait(self._options.stop_ms / 1000)
        except subprocess.TimeoutExpired as error:
            raise SourceError(f"{name} closed its output and goes on; it is ended, and started again after a while") from error
        if code:
            raise SourceError(f"{name} ended with exit code {code}; its last words: {self._tail()}")
        if self._options.restart:
            raise SourceAgainError(f"{name} ended well; it is started again")
        raise SourceEndedError(f"{name} ended well")

    def _tail(self) -> str:
        size = self._stderr.seek(0, os.SEEK_END)
        self._stderr.seek(max(0, size - _TAIL_BYTES))
        return self._stderr.read(_TAIL_BYTES).decode("utf-8", errors="replace").strip() or "(nothing)"

    def _trim_stderr(self) -> None:
        # A talkative program must not fill the disk: only its last words are ever shown.
        if os.fstat(self._stderr.fileno()).st_size > 64 * _TAIL_BYTES:
            self._stderr.truncate(0)
            os.lseek(self._stderr.fileno(), 0, os.SEEK_SET)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: what a program printed is gone from it."""

    def close(self) -> None:
        """Ask the program to end, then make it."""
        stop_s = self._options.stop_ms / 1000
        left = self._signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(stop_s)
            for _ in range(self._options.stop_ms // _LOOK_MS):
                left = self._signal(0)
                if not left:
                    break
                time.sleep(_LOOK_MS / 1000)
        if left:
            self._signal(signal.SIGKILL)
        with contextlib.suppress(subprocess.TimeoutExpired):  # another user's, by sudo: it ends when it prints
            self._process.wait(stop_s)
        self._selector.close()
        if self._process.stdout is not None:
            self._process.stdout.close()
        self._stderr.close()

    def _signal(self, number: int) -> bool:
        """To the program and all processes of its group; whether one of them is left."""
        try:
            os.killpg(self._process.pid, number)
        except (ProcessLookupError, PermissionError):
            return False
        return True


def _time_key(chunk: RawChunk, rename: Mapping[str, str]) -> str:
    return next((name for name in chunk.columns if rename.get(name) == EVENT_TIME), EVENT_TIME)


def check(options: Mapping[str, object], contract: Contract) -> ExecOptions:
    """The options of a program.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("exec", options, ExecOptions, contract)
    if not chosen.command:
        raise ConfigError("source 'exec': command is empty; give the program and its arguments as a list")
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> ExecSource:
    """Start a program.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: the program cannot be started.
    """
    return ExecSource(check(options, contract), contract, clock, position)
