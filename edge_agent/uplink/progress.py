"""What the uplink has done, for health and metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Written by the uplink's thread, read by any. Times are monotonic; minus infinity: never.

    Attributes:
        waiting_streams: the other side hangs up on all of their envelopes; they are tried again from time to time.
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
    turned_s: float = float("-inf")
