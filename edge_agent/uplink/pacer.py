"""A rate within a message: how many bytes of what waits may go to the socket now. No IO; time is given. Thread-safe.

The governor decides which message is next, and gives it out whole; a body of 200 kB is two seconds of a rate of 100 kB/s.
"""

import threading

from edge_agent.uplink.governor import NO_LIMIT_BYTES, TokenBucket

# Each turn copies what is left of the message, and wakes a thread: ten of them a second are even enough.
_TURN_S = 0.1


class Pacer:
    """Without a rate everything may go at once. Bytes, as they are given to the socket (TLS adds less than one per cent)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._bucket = TokenBucket(0)

    def retune(self, bytes_per_s: int) -> None:
        """Another rate from now on; 0: none."""
        with self._lock:
            self._bucket.retune(bytes_per_s)

    def room_bytes(self, now_s: float) -> int:
        """How many bytes may go now: none, or a turn's worth."""
        with self._lock:
            if self._bucket.bytes_per_s == 0:
                return NO_LIMIT_BYTES
            room_bytes = self._bucket.room_bytes(now_s)
            return room_bytes if room_bytes >= self._turn_bytes else 0

    def sent(self, size_bytes: int) -> None:
        """So many bytes went."""
        with self._lock:
            self._bucket.sent(size_bytes)

    def wait_s(self, now_s: float) -> float:
        """How long until there is room."""
        with self._lock:
            if self._bucket.bytes_per_s == 0:
                return 0.0
            lacking_bytes = self._turn_bytes - self._bucket.room_bytes(now_s)
            return max(0.0, lacking_bytes / self._bucket.bytes_per_s)

    @property
    def _turn_bytes(self) -> int:
        return max(1, int(self._bucket.bytes_per_s * _TURN_S))
