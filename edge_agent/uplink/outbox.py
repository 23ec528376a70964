"""Send envelopes and parts within the windows and the rate, and act on the broker's answer to each."""

import random
import time
from dataclasses import dataclass, field

import structlog

from catchment.runtime.clock import Backoff, Clock
from edge_agent.clock_quality import EARLIEST_MS
from edge_agent.config import UplinkConfig
from edge_agent.errors import BrokerUnavailableError
from edge_agent.spool.records import Envelope
from edge_agent.spool.spool import Spool
from edge_agent.uplink.parts import PartSender
from edge_agent.uplink.poison import PoisonIsolation
from edge_agent.uplink.rate_limiter import RateLimiter
from edge_agent.uplink.send_window import SendWindow, UplinkTimes
from edge_agent.uplink.session import NO_SUBSCRIBERS, Lost, OutgoingMessage, PubackAction, Session, puback_action
from schemas.envelope import ARROW_STREAM, EnvelopeHead
from schemas.ids import DeviceId
from schemas.reason_codes import describe_reason, is_refusal
from schemas.receipts import ShareNotice
from schemas.topics import Topics

log = structlog.get_logger(__name__)

_REFUSED_FIRST_S = 0.2
_REFUSED_CAP_S = 15.0
_OBJECT_ANSWER_S = 10.0
# The core is asked again about a large payload, and what a lost wake-up left behind is found.
_LOOK_EVERY_S = 5.0
# So long after the core's last word about this device's share it is kept to the rate that was given.
_SHARE_FOR_S = 600.0


def head_of(envelope: Envelope, device: DeviceId, true_offset_us: int | None, now_ms: int) -> EnvelopeHead:
    """What an envelope's properties say.

    Args:
        envelope: as the spool has it.
        device: whose.
        true_offset_us: wall clock minus time since boot as it was once the clock was right, in the boot that the envelope's times
            rest on; None where it never was.
        now_ms: this machine's wall clock.
    """
    clock, created_us, shift_us = envelope.clock, envelope.created_us, None
    if clock is not None and not clock.is_needed(true_offset_us):
        clock = None
    if clock is not None and true_offset_us is not None:
        shift_us = clock.shift_us(true_offset_us)
        is_early = created_us + shift_us <= now_ms * 1000 if clock.is_free else created_us < EARLIEST_MS * 1000
        # Made in the instant in which the clock was set: then this time is right already.
        created_us += shift_us if is_early else 0
    return EnvelopeHead(
        device=device,
        stream=envelope.stream,
        content_type=ARROW_STREAM,
        span=envelope.span,
        contract_version=envelope.contract_version,
        encoding=envelope.encoding,
        created_us=created_us,
        clock_boot=None if clock is None else clock.boot,
        clock_shift_us=shift_us,
    )


@dataclass(slots=True)
class UplinkProgress:
    """Written by the uplink's thread, read by any. Times are monotonic; minus infinity: never.

    Attributes:
        waiting_streams: the other side hangs up on all of their envelopes; they are tried again from time to time.
        over_share: why the core does not take all that is sent; "" when it does.
        share_notices: how often it said so since the start.
        refused_topics: topic or filter -> the reason code the broker last refused it with; accepted ones leave.
        refused_count: control messages and subscriptions refused since the start.
    """

    is_connected: bool = False
    sent_count: int = 0
    sent_bytes: int = 0
    not_sent_count: int = 0
    resent_count: int = 0
    parked_count: int = 0
    waiting_streams: tuple[str, ...] = ()
    last_ack_s: float = float("-inf")
    last_receipt_s: float = float("-inf")
    last_loop_s: float = float("-inf")
    refused_topics: dict[str, int] = field(default_factory=dict)
    refused_count: int = 0
    over_share: str = ""
    share_notices: int = 0

    def note_answer(self, topic: str, code: int) -> bool:
        """Note the broker's answer to a control message or a subscription; whether it refuses it."""
        if not is_refusal(code):
            if topic in self.refused_topics:
                self.refused_topics = {name: known for name, known in self.refused_topics.items() if name != topic}
                log.info("topic_accepted_again", topic=topic)
            return False
        self.refused_count += 1
        if self.refused_topics.get(topic) != code:
            # Replaced as a whole: other threads read it.
            self.refused_topics = {**self.refused_topics, topic: code}
            log.error("topic_refused", topic=topic, reason=describe_reason(code))
        return True


def _describe(code: int) -> str:
    return "0x10 no bridge listens; is the core's bridge running?" if code == NO_SUBSCRIBERS else describe_reason(code)


class Outbox:
    """Used by the uplink's thread alone.

    Args:
        spool: what is sent.
        config: windows, times, rate.
        topics: of the namespace.
        device: this device.
        progress: what is counted.
        clock: monotonic time; wall clock for the schedule.
        times: waiting times that no operator sets.
    """

    def __init__(
        self,
        spool: Spool,
        config: UplinkConfig,
        topics: Topics,
        device: DeviceId,
        progress: UplinkProgress,
        clock: Clock,
        times: UplinkTimes | None = None,
    ) -> None:
        self._times = times or UplinkTimes()
        self._spool = spool
        self._topics = topics
        self._device = device
        self._progress = progress
        self._clock = clock
        self._send_window = SendWindow(config.window_bytes, config.unsettled_bytes, config.resend_after_s)
        self.parts = PartSender(spool, topics, device, config.part_bytes, min(_OBJECT_ANSWER_S, config.resend_after_s))
        self._rate_limiter = RateLimiter(config)
        self._isolation = PoisonIsolation(spool, self._park, random.random, self._times)
        self._refused = Backoff(_REFUSED_FIRST_S, _REFUSED_CAP_S, random.random)
        self._paused_until_s = float("-inf")
        self._share_until_s: float | None = None
        self._parted_s = float("-inf")
        self._looked_s = float("-inf")
        # Something may wait that a pause or the rate limit delayed: look again without news.
        self._is_held = True
        self._is_parts_turn = False
        # Bytes that parts are ahead of envelopes, while both wait under a rate: they take turns.
        self._parts_ahead_bytes = 0
        self._tune(config)

    def retune(self, config: UplinkConfig) -> None:
        """Another rate, schedule, share or least priority from now on."""
        self._rate_limiter.retune(config)
        self._is_held = True
        self._tune(config)

    def connected(self, session: Session) -> None:
        """A new connection."""
        session.pace(self._rate_limiter.limits.bytes_per_s)
        self._is_held = True
        self._parted_s = float("-inf")
        self._isolation.connected(self._clock.monotonic_s())
        self.parts.connected()

    def lost(self, how: Lost | None = None) -> None:
        """The connection is gone: what was not acknowledged is sent again. How it ended; None: by our own hand."""
        self._spool.release(self._isolation.ended(self._send_window.lost(), self._clock.monotonic_s(), how))

    def over_share(self, notice: ShareNotice) -> None:
        """Keep to what the core takes of this device: send nothing for a while, then no faster than it says.

        What was acknowledged and has no receipt by then was not landed, and is sent again.
        """
        now_s = self._clock.monotonic_s()
        if notice.reason != self._progress.over_share:
            log.warning("share_exceeded", limit=notice.limit, reason=notice.reason, wait_s=notice.wait_ms / 1000)
        self._progress.over_share = notice.reason
        self._progress.share_notices += 1
        self._share_until_s = now_s + _SHARE_FOR_S
        self._rate_limiter.keep_share(notice.bytes_per_s)
        self._is_held = True
        if notice.wait_ms:
            resume_s = now_s + notice.wait_ms / 1000
            self._paused_until_s = max(self._paused_until_s, resume_s)
            self._send_window.hasten(resume_s)

    def _end_share(self) -> None:
        self._share_until_s = None
        self._progress.over_share = ""
        self._rate_limiter.keep_share(0)
        log.info("share_kept")

    def control_sent(self, size_bytes: int) -> None:
        """Something went that waits for nothing, such as a report; it counts against the rate."""
        self._rate_limiter.sent(size_bytes)

    def step(self, session: Session, now_s: float, *, has_news: bool = True) -> float:
        """Send what may be sent now; returns after how many seconds to come again, if nothing happens before.

        Args:
            session: the connection.
            now_s: monotonic time.
            has_news: whether anything happened since the last step; without it an idle agent does not ask the spool.

        Raises:
            BrokerUnavailableError: the connection is gone.
        """
        self._forget(self._spool.take_removed(), now_s)
        late = self._send_window.overdue(now_s)
        self._progress.resent_count += len(late)
        self._spool.release(late)
        if now_s - self._parted_s >= self._times.fresh_for_s:
            self._parted_s = now_s
            self._spool.part_backlog()
            self._isolation.look(now_s)
        if self._share_until_s is not None and now_s >= self._share_until_s:
            self._end_share()
        local = time.localtime(self._clock.now_ms() / 1000)
        if self._rate_limiter.look(local.tm_hour * 60 + local.tm_min):
            self._tune(self._rate_limiter.config)
            limits = self._rate_limiter.limits
            session.pace(limits.bytes_per_s)
            self._is_held = True
            log.info("send_limits_changed", bytes_per_s=limits.bytes_per_s, min_priority=limits.min_priority)
        if now_s < self._paused_until_s:
            self._is_held = True
            return self._paused_until_s - now_s
        if has_news or late or self._is_held or now_s - self._looked_s >= _LOOK_EVERY_S:
            self._looked_s = now_s
            self._send(session, now_s)
        wait_s = self._rate_limiter.wait_s(now_s) or (self._times.careful_turn_s if self._isolation.is_on else 0.0)
        self._is_held = wait_s > 0
        return wait_s or float("inf")

    def acked(self, mid: int, code: int) -> None:
        """The broker answered message `mid` with MQTT 5 reason `code`.

        Raises:
            SpoolError: the spool is broken.
        """
        now_s = self._clock.monotonic_s()
        self._isolation.answered()
        action = puback_action(code, 1)
        refusal = f"the broker refuses its parts with reason 0x{code:02x}" if action is PubackAction.NEVER else ""
        if self.parts.acked(mid, now_s, is_taken=code == 0, refusal=refusal):
            self._after(action, code)
            return
        id_ = self._send_window.acked(mid, now_s) if code == 0 else self._send_window.refused(mid, now_s)
        if id_ is None:
            return
        self._isolation.passed(id_, now_s)
        action = puback_action(code, self._send_window.tries(id_))
        if action is PubackAction.NEVER:
            self._park(id_, f"the broker refuses it with reason 0x{code:02x}")
        elif action is PubackAction.NOT_SENT:
            self._spool.release([id_])
        self._after(action, code)

    def _tune(self, config: UplinkConfig) -> None:
        self._spool.tune(config.fresh_share, self._rate_limiter.limits.min_priority)
        self.parts.tune(self._rate_limiter.limits.min_priority)

    def _after(self, action: PubackAction, code: int) -> None:
        if action is PubackAction.TAKEN:
            self._progress.last_ack_s = self._clock.monotonic_s()
            self._refused.succeeded()
        elif action is PubackAction.NOT_SENT:
            self._progress.not_sent_count += 1
            now_s = self._clock.monotonic_s()
            if now_s >= self._paused_until_s:
                wait_s = self._refused.next_s()
                self._paused_until_s = now_s + wait_s
                log.warning("samples_not_taken", reason=_describe(code), retry_in_s=round(wait_s, 1))

    def _forget(self, ids: list[int], now_s: float) -> None:
        self._send_window.forget(ids)
        self._isolation.forget(ids, now_s)
        self._progress.waiting_streams = self._isolation.paused

    def _send_alone(self, session: Session, now_s: float) -> None:
        """One message at a time, envelopes and parts in turns: some of them is suspected of making the broker hang up."""
        if self._send_window.unacked_count or self.parts.is_on_its_way or self._available_bytes(now_s) <= 0:
            return
        self._is_parts_turn = not self._is_parts_turn and self._isolation.may_send_others()
        if self._is_parts_turn:
            part_bytes = self.parts.step(session, now_s, self._rate_limiter.burst_bytes)
            self._rate_limiter.sent(part_bytes)
            self._progress.sent_bytes += part_bytes
            if part_bytes:
                return
        for envelope in self._isolation.next_alone(now_s):
            try:
                self._publish(session, envelope, now_s)
            except BrokerUnavailableError:
                self._spool.release(self._isolation.ended([envelope.id], now_s, None))
                raise

    def _send(self, session: Session, now_s: float) -> None:
        """Parts and envelopes take turns by bytes; without a rate to share, a part goes whenever the last one arrived."""
        if self._isolation.is_on:
            self._send_alone(session, now_s)
            return
        if self._parts_ahead_bytes > 0:
            self._send_envelopes(session, now_s)
        if self._rate_limiter.available_bytes(now_s) > 0:
            part_bytes = self.parts.step(session, now_s, self._rate_limiter.burst_bytes)
            self._rate_limiter.sent(part_bytes)
            self._progress.sent_bytes += part_bytes
            self._parts_ahead_bytes += part_bytes
            self._send_envelopes(session, now_s)
        if self._rate_limiter.available_bytes(now_s) > 0 or not self.parts.is_busy:
            # One of the two had nothing to send: nobody waits for a turn.
            self._parts_ahead_bytes = 0

    def _send_envelopes(self, session: Session, now_s: float) -> None:
        # After a refusal one message goes ahead alone: a whole window would only be refused again.
        most = 1 if self._refused.failures else session.receive_maximum
        while self._send_window.unacked_count < most and (available_bytes := self._available_bytes(now_s)) > 0:
            envelopes = self._spool.next_unsent(available_bytes if most > 1 else 1)
            if not envelopes:
                return
            for position, envelope in enumerate(envelopes):
                try:
                    self._parts_ahead_bytes -= self._publish(session, envelope, now_s)
                except BrokerUnavailableError:
                    self._spool.release(left.id for left in envelopes[position:])
                    raise

    def _available_bytes(self, now_s: float) -> int:
        return min(self._send_window.available_bytes(), self._rate_limiter.available_bytes(now_s))

    def _publish(self, session: Session, envelope: Envelope, now_s: float) -> int:
        head = self._head(envelope)
        topic = self._topics.up(self._device, envelope.stream)
        message = OutgoingMessage(topic, envelope.body, tuple(head.to_properties()), content_type=ARROW_STREAM)
        if message.packet_bytes > session.max_packet_bytes:
            limit = f"{message.packet_bytes} bytes are above the broker's packet limit of {session.max_packet_bytes}"
            self._park(envelope.id, f"{limit}; raise max_packet_size there or lower max_samples here")
            return 0
        mid = session.publish(message)
        self._isolation.sent(envelope, now_s)
        self._rate_limiter.sent(message.packet_bytes)
        # Its answer is slow only from when its last byte may have left: our own rate says nothing about the link.
        self._send_window.sent(mid, envelope.id, len(envelope.body), now_s + self._rate_limiter.debt_s())
        self._progress.sent_count += 1
        self._progress.sent_bytes += len(envelope.body)
        return message.packet_bytes

    def _head(self, envelope: Envelope) -> EnvelopeHead:
        true_offset_us = None if envelope.clock is None else self._spool.boot_offset_us(envelope.clock.boot)
        return head_of(envelope, self._device, true_offset_us, self._clock.now_ms())

    def _park(self, id_: int, reason: str) -> None:
        log.error("envelope_parked", id=id_, reason=reason)
        self._progress.parked_count += 1
        self._isolation.forget([id_], self._clock.monotonic_s())
        self._spool.park(id_, reason)
