"""What the uplink has done, for health and metrics."""

from dataclasses import dataclass


@dataclass(slots=True)
class Progress:
    """Written by the uplink's thread, read by any. Times are monotonic; minus infinity: never."""

    is_connected: bool = False
    sent_count: int = 0
    sent_bytes: int = 0
    not_sent_count: int = 0
    resent_count: int = 0
    parked_count: int = 0
    last_ack_s: float = float("-inf")
    last_receipt_s: float = float("-inf")
    turned_s: float = float("-inf")
