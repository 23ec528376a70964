"""Count the broker's refusals of a role's messages and subscriptions, and log each with the next step."""

import ssl
import threading
from collections import Counter
from collections.abc import Callable, Sequence

import structlog

from catchment.runtime.clock import Clock
from catchment.runtime.mqtt_link import TlsFileError, client_context
from pipelines.config import CoreBrokerConfig
from pipelines.errors import ConfigError, PipelineError, RetryLaterError
from schemas.reason_codes import QUOTA_EXCEEDED, describe_reason, is_refusal
from schemas.topics import Topics

_LOG_EVERY_S = 60.0
# More topics than this are counted and logged, and not remembered one by one.
_MAX_STANDING = 1_000

log = structlog.get_logger(__name__)


class Refusals:
    """Counts refused messages by the access rule that would grant them. Thread-safe.

    Args:
        topics: of the namespace.
        clock: for how often a refusal is logged.

    Attributes:
        count: messages refused since the start.
    """

    def __init__(self, topics: Topics, clock: Clock) -> None:
        self.count = 0
        self._topics = topics
        self._clock = clock
        self._lock = threading.Lock()
        self._standing: dict[str, int] = {}
        self._logged_s: dict[tuple[str, int], float] = {}

    @property
    def trouble(self) -> str:
        """Describe the refusals that were not followed by an acceptance; empty if there are none."""
        with self._lock:
            standing = dict(self._standing)
        topics = Counter(self._topics.rule_of(topic) for topic in standing)
        codes = {self._topics.rule_of(topic): code for topic, code in standing.items()}
        return "; ".join(
            f"the broker refuses {rule} ({topics[rule]} of them): {describe_reason(codes[rule])}" for rule in sorted(topics)
        )

    def judge(self, topic: str, code: int, *, is_standing: bool = True) -> bool:
        """Note the broker's answer to a message or subscription; whether it is a refusal.

        Args:
            topic: the message's topic, or the subscription's filter.
            code: MQTT 5 reason code.
            is_standing: whether a refusal is trouble until the topic is accepted.
        """
        rule = self._topics.rule_of(topic)
        with self._lock:
            if not is_refusal(code):
                self._standing.pop(topic, None)
                return False
            self.count += 1
            if is_standing and (topic in self._standing or len(self._standing) < _MAX_STANDING):
                self._standing[topic] = code
            now_s = self._clock.monotonic_s()
            is_due = now_s - self._logged_s.get((rule, code), float("-inf")) >= _LOG_EVERY_S
            if is_due:
                self._logged_s[rule, code] = now_s
        if is_due:
            log.error("broker_refused_message", topic=topic[:200], rule=rule, reason=describe_reason(code), refused=self.count)
        return True


class PublishTracker:
    """Matches PUBACKs with the messages they answer. Thread-safe; handlers are called outside of its lock."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._early: dict[int, int] = {}

    def sent(self, mid: int, on_answer: Callable[[int], None]) -> None:
        """Have `on_answer` called with the reason code for message `mid`, at once if the answer has come already."""
        with self._lock:
            code = self._early.pop(mid, None)
            if code is None:
                self._handlers[mid] = on_answer
        if code is not None:
            on_answer(code)

    def answered(self, mid: int, code: int) -> None:
        """Note the broker's answer to message `mid`."""
        with self._lock:
            on_answer = self._handlers.pop(mid, None)
            if on_answer is None:
                self._early[mid] = code
        if on_answer is not None:
            on_answer(code)


def refusal_error(topic: str, code: int) -> PipelineError:
    """The error for a message that the broker refused: a quota passes, a missing right is configuration."""
    text = f"the broker refuses {topic}: {describe_reason(code)}"
    return RetryLaterError(text) if code == QUOTA_EXCEEDED else ConfigError(text)


def refused_filters(filters: Sequence[str], codes: Sequence[int]) -> dict[str, int]:
    """The subscriptions that a SUBACK refuses, with their reason codes."""
    return {text: code for text, code in zip(filters, codes, strict=False) if is_refusal(code)}


def broker_client_context(broker: CoreBrokerConfig) -> ssl.SSLContext | None:
    """Mutual TLS 1.3 as configured; None where there is none.

    Raises:
        ConfigError: a file is missing or not what it should be.
    """
    tls = broker.tls
    if tls is None:
        return None
    try:
        return client_context(tls.ca, tls.cert, tls.key)
    except TlsFileError as error:
        raise ConfigError(f"broker.{error}") from error
