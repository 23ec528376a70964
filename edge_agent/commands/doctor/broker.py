"""The way to the broker, step by step: name, port, TLS, MQTT, and what it lets this device say and hear."""

import datetime as dt
import hashlib
import queue
import socket
import sqlite3
import ssl
from collections.abc import Iterator, Sequence
from contextlib import closing
from importlib import metadata

import msgspec

from catchment.runtime.clock import Clock
from edge_agent.commands.doctor.findings import Finding, failed, good, warning
from edge_agent.config import AgentConfig, BrokerConfig
from edge_agent.errors import BrokerUnavailableError
from edge_agent.spool import database
from edge_agent.uplink.session import (
    NO_SUBSCRIBERS,
    Acked,
    Event,
    Events,
    MessageArrived,
    OutgoingMessage,
    PahoSession,
    Subscribed,
    tls_context,
)
from schemas.envelope import JSON
from schemas.ids import DeviceId, Digest, StreamName
from schemas.parts import PartHead
from schemas.reason_codes import describe_reason, is_refusal
from schemas.reported import StreamBooks
from schemas.topics import Topics

WHAT = "broker"
RIGHTS = "topic rights"
_REACH_WITHIN_S = 10.0
ANSWER_WITHIN_S = 5.0
HEARTBEAT = StreamName("agent_heartbeat")
_PROBE = b"edge-agent doctor"
_ACL_HINT = "deploy/broker/acl shows the rules a device needs"


def examine_reach(broker: BrokerConfig) -> Iterator[Finding]:
    """Name, port and TLS; says nothing in MQTT, so a running agent's connection stays as it is."""
    place = f"{broker.host}:{broker.port}"
    try:
        with socket.create_connection((broker.host, broker.port), _REACH_WITHIN_S) as line:
            yield good(WHAT, f"{place} accepts connections")
            if broker.tls is not None:
                yield _tls(broker, line)
    except socket.gaierror as error:
        yield failed(WHAT, f"the name {broker.host} is not known: {error.strerror}", "check [broker] host, and the device's DNS")
    except ConnectionRefusedError:
        yield failed(WHAT, f"{place} refuses: nothing listens there", "check [broker] port; is the broker running?")
    except TimeoutError:
        yield failed(
            WHAT, f"{place} does not answer within {_REACH_WITHIN_S:.0f} s", "a firewall may be between; is the port open?"
        )
    except OSError as error:
        yield failed(WHAT, f"{place} cannot be reached: {error}", "check the network: ip route, ping")


def _tls(broker: BrokerConfig, line: socket.socket) -> Finding:
    try:
        with tls_context(broker).wrap_socket(line, server_hostname=broker.host) as secure:
            return good(WHAT, f"{secure.version()}; its certificate is {broker.host}'s and our authority vouches for it")
    except ssl.SSLCertVerificationError as error:
        fix = "is broker.tls.ca the authority of the broker's certificate, host the name in it, and the clock right?"
        return failed(WHAT, f"the broker's certificate is not believed: {error.verify_message}", fix)
    except OSError as error:
        return failed(WHAT, f"no TLS 1.3 with it: {error}", "is this the broker's TLS port? Does it allow TLS 1.3?")


def examine_rights(config: AgentConfig, clock: Clock, answer_within_s: float = ANSWER_WITHIN_S) -> Iterator[Finding]:
    """Connect as the device; publish and hear where it must be able to.

    What is said is true and small: one heartbeat sample, and a question after an object that nobody has. A topic where
    no bridge listens would be no proof: a broker's rules are as narrow as they can be.
    """
    events: Events = queue.SimpleQueue()
    try:
        session = PahoSession(config.broker, config.device, events)
    except BrokerUnavailableError as error:
        yield failed(WHAT, str(error), _refusal_fix(str(error)))
        return
    yield good(WHAT, f"MQTT 5; packets up to {session.max_packet_bytes:,} bytes, {session.receive_maximum:,} at once")
    topics, device = Topics(config.broker.namespace), DeviceId(config.device)
    digest = Digest(hashlib.sha256(_PROBE).hexdigest())
    question = PartHead(digest, 0, 0, len(_PROBE))
    beating = OutgoingMessage(topics.up(device, HEARTBEAT), heartbeat(clock.now_ms(), _books(config)), content_type=JSON)
    asking = OutgoingMessage(topics.parts(device, digest), b"", tuple(question.to_properties()))
    try:
        session.subscribe([topics.down_filter(device)])
        codes = {session.publish(message): message.topic for message in (beating, asking)}
        answers = _listen(events, clock, codes, answer_within_s)
        yield from _publishing(codes, answers, f"{topics.namespace}/up/{device}/+", answer_within_s)
        yield _hearing(answers, topics.down_filter(device), answer_within_s)
    except BrokerUnavailableError as error:
        yield failed(RIGHTS, f"the broker ended the connection: {error}", f"its log says why; {_ACL_HINT}")
    finally:
        session.close()


def heartbeat(now_ms: int, books: Sequence[StreamBooks]) -> bytes:
    """The sample that is sent: a heartbeat of an agent that is not connected, because it is the doctor who is."""
    sample = {
        "event_time": dt.datetime.fromtimestamp(now_ms / 1000, tz=dt.UTC).isoformat(),
        "agent_version": metadata.version("catchment"),
        "is_connected": False,
        "uptime_s": 0.0,
        "captured": sum(entry.captured for entry in books),
        "settled": sum(entry.settled for entry in books),
        "spooled": sum(entry.spooled for entry in books),
        "dropped": sum(sum(entry.dropped.values()) for entry in books),
        "books": msgspec.json.encode(books).decode(),
    }
    return msgspec.json.encode([sample])


def _books(config: AgentConfig) -> tuple[StreamBooks, ...]:
    """The device's books, as far as they can be read while the agent runs."""
    path = config.spool_dir / database.FILE_NAME
    if not path.exists():
        return ()
    try:
        with closing(database.connect_reader(path)) as db:
            return database.books(db)
    except sqlite3.Error:
        return ()  # damaged: the agent repairs it at its next start, and `status` says so


def _listen(events: Events, clock: Clock, wanted: dict[int, str], within_s: float) -> list[Event]:
    """All that comes until every message is answered and something came down, or time is over."""
    found: list[Event] = []
    until_s = clock.monotonic_s() + within_s
    while (left_s := until_s - clock.monotonic_s()) > 0:
        try:
            found.append(events.get(timeout=left_s))
        except queue.Empty:
            break
        answered = {event.mid for event in found if isinstance(event, Acked)}
        is_refused = any(isinstance(event, Subscribed) and _refused(event) for event in found)
        if answered >= wanted.keys() and (is_refused or any(isinstance(event, MessageArrived) for event in found)):
            break
    return found


def _publishing(published: dict[int, str], answers: list[Event], up_filter: str, within_s: float) -> Iterator[Finding]:
    codes = {event.mid: event.code for event in answers if isinstance(event, Acked)}
    for mid, topic in published.items():
        code = codes.get(mid)
        if code in (0, NO_SUBSCRIBERS):
            yield good(RIGHTS, f"may publish to {topic}")
        elif code is None:
            fix = f"its log says why; {_ACL_HINT}"
            yield failed(RIGHTS, f"no answer to a message to {topic} within {within_s:.0f} s", fix)
        else:
            fix = f"let it write {up_filter} and parts, or look at the broker's quota; {_ACL_HINT}"
            yield failed(RIGHTS, f"may not publish to {topic}: reason 0x{code:02x}", fix)


def _refused(answer: Subscribed) -> list[str]:
    return [f"{text}: {describe_reason(code)}" for text, code in answer.answers if is_refusal(code)]


def _hearing(answers: list[Event], down_filter: str, within_s: float) -> Finding:
    refused = [text for event in answers if isinstance(event, Subscribed) for text in _refused(event)]
    if refused:
        return failed(RIGHTS, f"may not subscribe to {'; '.join(refused)}", f"let the device read {down_filter}; {_ACL_HINT}")
    heard = [event.topic for event in answers if isinstance(event, MessageArrived)]
    if heard:
        return good(RIGHTS, f"hears {heard[0]}")
    fix = f"is the core's bridge running? If it is, let the device read {down_filter}; {_ACL_HINT}"
    return warning(RIGHTS, f"nothing came down on {down_filter} within {within_s:.0f} s", fix)


def _refusal_fix(reason: str) -> str:
    if "authori" in reason.lower() or "bad user" in reason.lower():
        return "the broker does not know this device: is its certificate signed by the authority the broker trusts?"
    if "certificate" in reason.lower() or "alert" in reason.lower():
        return "the broker refuses the certificate: revoked, expired, or of another authority; its log says which"
    return "the broker's log says why; does it speak MQTT 5?"
