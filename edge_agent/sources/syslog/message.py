"""One syslog message, RFC 5424, RFC 3164, Meraki's or whatever comes: read as far as it can be, never refused. Pure."""

import re
from dataclasses import dataclass
from datetime import UTC, datetime, tzinfo

from edge_agent.sources.rows.cells import CellError, to_time
from schemas.written_values import TimeForm

_NIL = "-"
_PRI = re.compile(r"<(\d{1,3})>")
_MAX_PRI = 191
_HEADER = re.compile(r"1 (\S{1,64}) (\S{1,255}) (\S{1,128}) (\S{1,128}) (\S{1,128}) ")
# Meraki: seconds since 1970 with their fraction, the device, and which of its logs this is; its text follows at once.
_EPOCH = re.compile(r"(\d{9,11})(?:\.(\d{1,9}))?")
_MERAKI = re.compile(r"(?:1 )?(\d{9,11}\.\d{1,9}|(?<=1 )\d{9,11}) ([^\s=]{1,255}) ([^\s=]{1,128})(?: |$)")
_STRUCTURED_NEXT = re.compile(r"-(?: |$)|\[")
_ELEMENT = re.compile(r"\[([^\s=\]\"]{1,128})")
_PARAMETER = re.compile(r" ([^\s=\]\"]{1,128})=\"((?:[^\"\\\]]|\\.)*)\"", re.DOTALL)
# Some write the day without its blank, the year behind it, or a colon where the host would follow (Cisco).
_BSD_TIME = re.compile(r"([A-Z][a-z]{2}) ( ?\d{1,2})(?: (\d{4}))? (\d{1,2}):(\d\d):(\d\d)(?:\.(\d{1,6}))?(?: ?(:) | )")
_ISO_TIME = re.compile(r"(\d{4}-\d\d-\d\dT\S{1,40}) ")
_HOST = re.compile(r"([^\s\[\]:]{1,255}|[0-9a-fA-F:]{2,45}) (?=\S)")
# A number alone is no program: Cisco counts its messages so.
_TAG = re.compile(r"(?!\d+:)([^\s\[\]:<>]{1,64})(?:\[([^\]]{1,128})\])?: ?")
_MONTHS = ("", "Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")
_HALF_YEAR_US = 183 * 86_400_000_000


@dataclass(frozen=True, slots=True)
class SyslogMessage:
    """The fields of a message. None: missing.

    Attributes:
        time_us: its own time, microseconds since 1970.
        structured: element -> parameter -> value.
        problem: why it was read only in part; empty if it was read whole.
    """

    message: str
    facility: int | None = None
    severity: int | None = None
    time_us: int | None = None
    host: str | None = None
    app: str | None = None
    proc_id: str | None = None
    msg_id: str | None = None
    structured: dict[str, dict[str, str]] | None = None
    problem: str = ""


def read_message(raw: bytes, now_us: int, zone: tzinfo | None) -> SyslogMessage:
    """Read one message.

    Args:
        raw: without its framing.
        now_us: the year of an RFC 3164 time is the one that brings it nearest to this.
        zone: of RFC 3164 times, which tell none; None: this machine's.
    """
    problem = ""
    try:
        text = raw.decode()
    except UnicodeDecodeError:
        text, problem = raw.decode(errors="replace"), "not UTF-8, replaced by U+FFFD"
    text = text.rstrip("\r\n\0").removeprefix("\ufeff")
    found = _PRI.match(text)
    if found is None or int(found[1]) > _MAX_PRI:
        return SyslogMessage(text, problem=problem or "no priority")
    facility, severity = divmod(int(found[1]), 8)
    header = _HEADER.match(text, found.end())
    meraki = _MERAKI.match(text, found.end())
    if meraki is not None and (header is None or not _STRUCTURED_NEXT.match(text, header.end())):
        return _meraki(text, meraki, (facility, severity), problem)
    if header is not None:
        return _rfc5424(text, header, (facility, severity), now_us, zone, problem)
    return _rfc3164(text[found.end() :], (facility, severity), now_us, zone, problem)


def _rfc5424(
    text: str, header: re.Match[str], pri: tuple[int, int], now_us: int, zone: tzinfo | None, problem: str
) -> SyslogMessage:
    timestamp, host, app, proc_id, msg_id = (None if value == _NIL else value for value in header.groups())
    time_us = None
    if timestamp is not None:
        try:
            time_us = _epoch_us(timestamp) if _EPOCH.fullmatch(timestamp) else _iso_time(timestamp, now_us, zone)
        except CellError:
            problem = problem or "its time is no RFC 3339 time"
    structured, end = _structured(text, header.end())
    if structured is None:
        problem = problem or "its structured data is malformed"
    message = text[end:].removeprefix(" ").removeprefix("\ufeff")
    return SyslogMessage(message, *pri, time_us, host, app, proc_id, msg_id, structured or None, problem)


def _structured(text: str, start: int) -> tuple[dict[str, dict[str, str]] | None, int]:
    """The structured data and where it ends; None, and the start, where it is malformed."""
    if text.startswith(_NIL, start):
        return {}, start + 1
    elements: dict[str, dict[str, str]] = {}
    at = start
    while element := _ELEMENT.match(text, at):
        at = element.end()
        values = elements.setdefault(element[1], {})
        while parameter := _PARAMETER.match(text, at):
            values[parameter[1]] = re.sub(r"\\([\"\\\]])", r"\1", parameter[2])
            at = parameter.end()
        if not text.startswith("]", at):
            return None, start
        at += 1
    is_whole = bool(elements) and (at == len(text) or text[at] == " ")
    return (elements, at) if is_whole else (None, start)


def _meraki(text: str, header: re.Match[str], pri: tuple[int, int], problem: str) -> SyslogMessage:
    return SyslogMessage(text[header.end() :], *pri, _epoch_us(header[1]), header[2], header[3], problem=problem)


def _epoch_us(timestamp: str) -> int:
    seconds, _, fraction = timestamp.partition(".")
    return int(seconds) * 1_000_000 + int(fraction[:6].ljust(6, "0"))


def _rfc3164(text: str, pri: tuple[int, int], now_us: int, zone: tzinfo | None, problem: str) -> SyslogMessage:
    time_us, at = _bsd_time(text, now_us, zone)
    host = None
    # Without a time there is no header at all, and the first word is the message's.
    if time_us is not None and (found := _HOST.match(text, at)):
        host, at = found[1], found.end()
    app = proc_id = None
    if found := _TAG.match(text, at):
        app, proc_id, at = found[1], found[2], found.end()
    return SyslogMessage(text[at:], *pri, time_us, host, app, proc_id, problem=problem)


def _bsd_time(text: str, now_us: int, zone: tzinfo | None) -> tuple[int | None, int]:
    try:
        if found := _ISO_TIME.match(text):
            return _iso_time(found[1], now_us, zone), found.end()
        found = _BSD_TIME.match(text)
        if found is None or found[1] not in _MONTHS:
            return None, 0
        year = datetime.fromtimestamp(now_us / 1e6, UTC).year
        numbers = [int(found[group]) for group in (2, 4, 5, 6)]
        micros = int((found[7] or "").ljust(6, "0"))
        month = _MONTHS.index(found[1])
        if found[3] is not None:
            moment = _moment((int(found[3]), month, *numbers), micros, zone, now_us)
            return (None, 0) if moment is None else (moment, found.end())
        moments = [_moment((year + step, month, *numbers), micros, zone, now_us) for step in (-1, 0, 1)]
        near = [moment for moment in moments if moment is not None and abs(moment - now_us) <= _HALF_YEAR_US]
        return (near[0], found.end()) if near else (None, 0)
    except (CellError, ValueError, OverflowError, OSError):
        return None, 0


def _iso_time(text: str, now_us: int, zone: tzinfo | None) -> int:
    """An RFC 3339 time; one that tells no zone is of the configured one, or UTC."""
    return to_time(text, TimeForm("rfc3339", zone=zone or UTC), near_us=now_us).micros


def _moment(numbers: tuple[int, ...], micros: int, zone: tzinfo | None, now_us: int) -> int | None:
    """A local time; of one that occurs twice, as the clocks are set back, the one nearer to its arrival."""
    try:
        moments = [datetime(*numbers, micros, tzinfo=zone, fold=fold) for fold in (0, 1)]  # type: ignore[arg-type,misc]
    except ValueError:
        return None  # February 29 of another year
    early, late = (round(moment.timestamp() * 1e6) for moment in moments)
    return late if late > early and abs(late - now_us) < abs(early - now_us) else early
