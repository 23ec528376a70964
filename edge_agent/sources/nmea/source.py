"""A source of fixes of a satellite receiver: NMEA 0183 from a serial line or over TCP, or reports of gpsd.

    kind = "nmea"
    source = "/dev/ttyUSB0"        # or tcp://10.0.0.5:10110, or gpsd://127.0.0.1:2947
    baud = 9600
    rename = { course_deg = "steering_deg" }
    columns = { vehicle = "truck-7" }
    timeout_s = 30.0               # nothing for so long: the line is opened again

One sample per fix: latitude_deg, longitude_deg, altitude_m, speed_mps, course_deg, satellites, hdop, as far as the contract
has them. Event time is the satellites' own, with the clock quality `gnss`;
a receiver whose week counter wrapped (it tells 2007) is put right, counted and marked `corrected`.
A sentence with a wrong checksum is refused.
Tag blocks (NMEA 4.10) may stand before a sentence, binary messages (UBX, RTCM 3) between two.
"""

import os
import select
import socket
import termios
from collections.abc import Mapping, Sequence
from typing import Protocol

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.clock_quality import COLUMN, EARLIEST_MS, ClockQuality
from edge_agent.errors import ConfigError, SourceError
from edge_agent.sources.api import Rejects, SampleBatch, Scalar
from edge_agent.sources.files.lines import LineBuffer
from edge_agent.sources.network.sockets import HostPort, read_address
from edge_agent.sources.nmea.sentence import Fix, FixBuilder, SentenceError, SentenceStream, read_fields, read_tpv
from edge_agent.sources.options import read_options
from edge_agent.sources.rows.mapping import ColumnMapper, MappedRows
from edge_agent.sources.rows.tables import RawChunk, decode_object
from schemas.contract import Contract

_CHUNK_BYTES = 64 * 1024

# The options that say what is read: a change of any other keeps the position.
IDENTITY = ("source",)

# GPS week rollover: receivers count weeks modulo 1024, and old firmware tells a time 1024 weeks in the past. Pure.
# Source: IS-GPS-200, 20.3.3.3.1.1 (ten-bit week number); a receiver's firmware fixes which span of 1024 weeks it means.
ROLLOVER_US = 1_024 * 7 * 86_400 * 1_000_000
# A live receiver tells the present: further from a whole number of rollovers, it is another kind of wrong.
_TOLERANCE_US = 86_400 * 1_000_000


class ByteInput(Protocol):
    """The interface of an input of bytes."""

    def read(self, wait_s: float) -> bytes:
        """Return the bytes that arrived; empty where none arrive in time.

        Raises:
            SourceError: it is over.
        """
        ...

    def close(self) -> None:
        """Close it."""
        ...


class SerialInput:
    """A serial line: 8 data bits, no parity, one stop bit.

    Args:
        path: of the device.
        baud: bits per second, one of the kernel's own numbers.

    Raises:
        SourceError: it cannot be opened.
    """

    def __init__(self, path: str, baud: int) -> None:
        self._path = path
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_NOCTTY | os.O_NONBLOCK)
        except OSError as error:
            raise SourceError(f"{path} cannot be opened ({error.strerror}); may the agent's user read it?") from error
        try:
            _make_raw(self._fd, baud)
        except (OSError, termios.error) as error:
            os.close(self._fd)
            raise SourceError(f"{path} cannot be used as a serial line ({error.args[-1]}); is it one?") from error

    def read(self, wait_s: float) -> bytes:
        """Return the bytes that arrived; empty where none arrive in time."""
        if not select.select([self._fd], [], [], wait_s)[0]:
            return b""
        try:
            piece = os.read(self._fd, _CHUNK_BYTES)
        except OSError as error:
            raise SourceError(f"{self._path} went away: {error.strerror}") from error
        if not piece:
            raise SourceError(f"{self._path} went away")
        return piece

    def close(self) -> None:
        """Close the device."""
        os.close(self._fd)


class TcpInput:
    """A connection to a server that talks by itself, or once it was greeted.

    Raises:
        SourceError: nobody answers.
    """

    def __init__(self, at: HostPort, greeting: bytes, timeout_s: float) -> None:
        self._name = f"{at.host} port {at.port}"
        try:
            self._socket = socket.create_connection((at.host, at.port), timeout_s)
        except OSError as error:
            raise SourceError(f"{self._name} does not answer ({error.strerror or error}); it is tried again") from error
        try:
            self._socket.sendall(greeting)
        except OSError as error:
            self._socket.close()
            raise SourceError(f"{self._name} does not answer ({error.strerror or error}); it is tried again") from error

    def read(self, wait_s: float) -> bytes:
        """Return the bytes that arrived; empty where none arrive in time."""
        if not select.select([self._socket], [], [], wait_s)[0]:
            return b""
        try:
            piece = self._socket.recv(_CHUNK_BYTES)
        except OSError as error:
            raise SourceError(f"the connection to {self._name} broke: {error.strerror or error}") from error
        if not piece:
            raise SourceError(f"{self._name} closed the connection")
        return piece

    def close(self) -> None:
        """Close the connection."""
        self._socket.close()


def speeds() -> dict[int, int]:
    """Bits per second -> the kernel's constant."""
    found = {name[1:]: value for name, value in vars(termios).items() if name.startswith("B") and name[1:].isdigit()}
    return {int(name): value for name, value in found.items() if int(name) > 0}


def _make_raw(fd: int, baud: int) -> None:
    mode = termios.tcgetattr(fd)
    speed = speeds()[baud]
    mode[0] = mode[1] = mode[3] = 0  # no translation, no flow control, no echo, no lines
    mode[2] = termios.CS8 | termios.CREAD | termios.CLOCAL
    mode[4] = mode[5] = speed
    termios.tcsetattr(fd, termios.TCSANOW, mode)


def rollovers(reported_us: int, now_us: int) -> int:
    """Count the rollovers that a live receiver's time is behind.

    Args:
        reported_us: time that the receiver reports, microseconds since 1970.
        now_us: this machine's wall clock, which need not be set.

    Returns:
        0 where its time can be true, or is wrong in another way.
    """
    if now_us < EARLIEST_MS * 1000:
        # Neither clock is right: the first time after this software existed is the least that can be true.
        behind_us = EARLIEST_MS * 1000 - reported_us
        return max(0, -(-behind_us // ROLLOVER_US))
    count = round((now_us - reported_us) / ROLLOVER_US)
    is_near = abs(now_us - reported_us - count * ROLLOVER_US) <= _TOLERANCE_US
    return count if count > 0 and is_near else 0


_WATCH = b'?WATCH={"enable":true,"json":true};\n'
_MAX_LINE_BYTES = 16 * 1024
_NAMES = ("latitude_deg", "longitude_deg", "altitude_m", "speed_mps", "course_deg", "satellites", "hdop")


class NmeaOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The options of a satellite receiver; the module's docstring shows each."""

    source: str
    baud: int = 9_600
    rename: dict[str, str] = {}
    columns: dict[str, str | int | float | bool] = {}
    timeout_s: float = 30.0
    wait_ms: int = 100


class NmeaSource(MappedRows):
    """Reads one receiver; see the module.

    Attributes:
        rejected: reason -> sentences and cells refused.
    """

    def __init__(self, options: NmeaOptions, contract: Contract, clock: Clock) -> None:
        self._options = options
        self._clock = clock
        self._rejects = Rejects(f"nmea {options.source}")
        self._mapper = ColumnMapper(contract, options.rename, frozenset(), self._rejects)
        quality = contract.column(COLUMN)
        self._has_quality = quality is not None
        # A contract from before this word existed would refuse it.
        can_say = quality is not None and (not quality.allowed or ClockQuality.CORRECTED in quality.allowed)
        self._corrected = ClockQuality.CORRECTED if can_say else ClockQuality.GNSS
        self._is_gpsd = options.source.startswith("gpsd:")
        self._builder = FixBuilder()
        self._reports = LineBuffer(_MAX_LINE_BYTES, self._rejects)
        self._sentences = SentenceStream(self._rejects)
        self._input = self._open()
        self._heard_s = clock.monotonic_s()

    def _open(self) -> ByteInput:
        source = self._options.source
        if source.startswith("/"):
            return SerialInput(source, self._options.baud)
        at = read_address("nmea", source, ("tcp", "gpsd"))
        return TcpInput(at, _WATCH if self._is_gpsd else b"", self._options.timeout_s)

    def read(self, max_samples: int) -> SampleBatch | None:
        """The fixes that have come; None where none has.

        Raises:
            SourceError: the receiver is gone, or silent for too long.
        """
        last: list[Fix] = []
        lines = self._take(max_samples)
        if not lines:
            try:
                self._receive()
            except SourceError:
                # The moment that was being reported is over, too; the next read fails again.
                fix = self._builder.flush()
                if fix is None:
                    raise
                last = [fix]
            lines = self._take(max_samples)
        fixes = [fix for line in lines if (fix := self._fix(line)) is not None]
        fixes += last
        return self._batch(fixes) if fixes else None

    def _take(self, most: int) -> list[str]:
        return self._reports.take(most, ended=False) if self._is_gpsd else self._sentences.take(most)

    def _receive(self) -> None:
        piece = self._input.read(self._options.wait_ms / 1000)
        now_s = self._clock.monotonic_s()
        if piece:
            self._heard_s = now_s
            (self._reports if self._is_gpsd else self._sentences).add(piece)
        elif now_s - self._heard_s > self._options.timeout_s:
            raise SourceError(f"{self._options.source} says nothing for {self._options.timeout_s:.0f} s; it is opened again")

    def _fix(self, line: str) -> Fix | None:
        if not line.strip():
            return None
        fix, reason = self._read_report(line) if self._is_gpsd else self._read_sentence(line)
        if reason:
            self._rejects.count(reason if reason.startswith("report:") else f"row: {reason}")
        return fix

    def _read_sentence(self, line: str) -> tuple[Fix | None, str]:
        before = self._builder.dateless
        try:
            return self._builder.take(read_fields(line))
        except SentenceError as error:
            return None, str(error)
        finally:
            if self._builder.dateless > before:
                self._rejects.count("row: fix without a date: no RMC sentence told it")

    def _read_report(self, line: str) -> tuple[Fix | None, str]:
        report = decode_object(line, self._rejects)
        try:
            return None if report is None else read_tpv(report), ""
        except SentenceError as error:
            return None, str(error)

    def _batch(self, fixes: Sequence[Fix]) -> SampleBatch:
        raw: dict[str, Sequence[object]] = {name: [getattr(fix, name) for fix in fixes] for name in _NAMES}
        raw |= {name: [value] * len(fixes) for name, value in self._options.columns.items()}
        columns: dict[str, Sequence[Scalar]] = self._mapper.convert(RawChunk(raw, len(fixes)))
        now_us = self._clock.now_ms() * 1000
        behind = [rollovers(fix.time_us, now_us) for fix in fixes]
        if wrapped := sum(map(bool, behind)):
            self._rejects.count("report: GPS week rollover: 1024 weeks were added", times=wrapped)
        if self._has_quality:
            columns[COLUMN] = [str(self._corrected if count else ClockQuality.GNSS) for count in behind]
        return SampleBatch([fix.time_us + count * ROLLOVER_US for fix, count in zip(fixes, behind, strict=True)], columns)

    def stored(self, batch: SampleBatch) -> None:
        """Nothing to do: a receiver does not repeat itself."""

    def close(self) -> None:
        """Close the receiver."""
        self._input.close()


def names_given(options: Mapping[str, object], contract: Contract) -> tuple[str, ...]:
    """The names that a fix gives, as the contract's columns where they are renamed."""
    chosen = check(options, contract)
    return (*(chosen.rename.get(name, name) for name in _NAMES), *chosen.columns)


def check(options: Mapping[str, object], contract: Contract) -> NmeaOptions:
    """The options of a satellite receiver.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
    """
    chosen = read_options("nmea", options, NmeaOptions, contract)
    if not chosen.source.startswith("/"):
        read_address("nmea", chosen.source, ("tcp", "gpsd"))
    if chosen.baud not in speeds():
        raise ConfigError(f"source 'nmea': baud {chosen.baud} is not one of {', '.join(map(str, sorted(speeds())))}")
    if chosen.timeout_s <= 0:
        raise ConfigError("source 'nmea': timeout_s must be above 0")
    return chosen


def build(options: Mapping[str, object], contract: Contract, clock: Clock, position: bytes | None) -> NmeaSource:
    """Open a receiver.

    Raises:
        ConfigError: an option is unknown, missing or wrong.
        SourceError: it cannot be opened.
    """
    del position  # a receiver cannot go back
    return NmeaSource(check(options, contract), contract, clock)
