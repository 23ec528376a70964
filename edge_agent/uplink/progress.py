"""What the uplink has done, for health and metrics."""

from dataclasses import dataclass, field

import structlog

from schemas.reason_codes import describe_reason, is_refusal

log = structlog.get_logger(__name__)


@dataclass(slots=True)
class Progress:
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
