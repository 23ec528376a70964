"""Limit each device: rates of bytes and messages, streams, and its part of a disk that is nearly full. No IO.

A device over its share is deferred: nothing of it is landed until it may go on, nobody else notices, and it keeps what
has no receipt. Rates are token buckets; a message goes while anything is left in them, whatever its size, and leaves a debt.
"""

from dataclasses import dataclass, field

from pipelines.config import ShareConfig
from schemas.receipts import ShareNotice

BYTES, MESSAGES, STREAMS, DISK, RETAINED = "bytes", "messages", "streams", "disk", "retained"
# After it was over, a device goes on once it may send for so long at its rate.
_RESUME_S = 10.0
_DISK_WAIT_S = 60.0
_NOTICE_EVERY_S = 5.0
# A device counts as over its share for so long after the last message that was deferred.
_STAYS_OVER_S = 60.0
# On a disk that is nearly full one device may bring this part of what is left, over a day or so.
_LOW_DISK_PART = 8
_DAY_S = 86_400.0
_MAX_ACCOUNTS = 100_000
_SHOWN = 20


@dataclass(slots=True)
class _Account:
    """One device. Times are monotonic seconds."""

    bytes_left: float
    messages_left: float
    filled_s: float
    day_bytes: float = 0.0
    limit: str = ""
    last_limit: str = ""
    since_s: float = 0.0
    deferred_s: float = float("-inf")
    deferred: int = 0
    deferred_bytes: int = 0
    noticed_s: float = float("-inf")
    streams: set[str] = field(default_factory=set)
    litter_since_s: float = 0.0
    litter_s: float = float("-inf")
    litter: int = 0
    litter_bytes: int = 0
    litter_noticed_s: float = float("-inf")


@dataclass(frozen=True, slots=True)
class OverShare:
    """A device over its share: since when (seconds ago), and what was deferred, or taken back at the broker, since."""

    device: str
    limit: str
    for_s: float
    messages: int
    bytes: int


class Shares:
    """Decides which messages are landed. One thread uses it; `over` may be read by any.

    Args:
        config: the shares.
        max_accounts: devices that are remembered; those that have rested are forgotten then.

    Attributes:
        deferred_messages, deferred_bytes: of all devices, since the start.
    """

    def __init__(self, config: ShareConfig, max_accounts: int = _MAX_ACCOUNTS) -> None:
        self._max_accounts = max_accounts
        self.deferred_messages = 0
        self.deferred_bytes = 0
        self._config = config
        self._accounts: dict[str, _Account] = {}
        self._deferring: dict[str, _Account] = {}
        self._swept_s = float("-inf")

    @property
    def account_count(self) -> int:
        """Devices that are remembered."""
        return len(self._accounts)

    def admit(self, device: str, stream: str, cost_bytes: int, now_s: float, low_room_bytes: int | None = None) -> bool:
        """Whether a message may be landed; its cost is then taken from the device's share.

        Args:
            device: who sends it.
            stream: of an envelope; empty for anything else.
            cost_bytes: what it takes on disk, about.
            now_s: monotonic seconds.
            low_room_bytes: what may still be written to a disk that is nearly full; None: there is plenty.
        """
        account = self._account(device, now_s)
        limit = self._over(account, stream, cost_bytes, low_room_bytes)
        if limit:
            self._defer(device, account, limit, cost_bytes, now_s)
            return False
        account.limit = ""
        account.bytes_left -= cost_bytes
        account.messages_left -= 1
        account.day_bytes += cost_bytes
        if stream:
            account.streams.add(stream)
        return True

    def note_retained(self, device: str, size_bytes: int, now_s: float) -> ShareNotice | None:
        """Note that a device had the broker keep a message for nothing; what to say to it, if anything."""
        account = self._account(device, now_s)
        if now_s - account.litter_s >= _STAYS_OVER_S:
            account.litter_since_s, account.litter, account.litter_bytes = now_s, 0, 0
        account.litter_s = now_s
        account.litter += 1
        account.litter_bytes += size_bytes
        self._deferring[device] = account
        if now_s - account.litter_noticed_s < _STAYS_OVER_S:
            return None
        account.litter_noticed_s = now_s
        return ShareNotice(RETAINED, "only the report may be retained; the broker was told to forget the rest", 0, 0, 0)

    def notice(self, device: str, now_s: float) -> ShareNotice | None:
        """Return the notice for a device whose message was just deferred; None if it got one a moment ago."""
        account = self._accounts.get(device)
        if account is None or not account.limit or now_s - account.noticed_s < _NOTICE_EVERY_S:
            return None
        account.noticed_s = now_s
        wait_s = self._wait_s(account)
        return ShareNotice(
            account.limit, self._reason(account), round(wait_s * 1_000), self._config.bytes_per_s, account.deferred
        )

    def over(self, now_s: float) -> list[OverShare]:
        """Devices over their share, the one with most deferred bytes first; at most 20."""
        found = [
            OverShare(device, account.last_limit, now_s - account.since_s, account.deferred, account.deferred_bytes)
            for device, account in list(self._deferring.items())
            if now_s - account.deferred_s < _STAYS_OVER_S
        ]
        found += [
            OverShare(device, RETAINED, now_s - account.litter_since_s, account.litter, account.litter_bytes)
            for device, account in list(self._deferring.items())
            if now_s - account.litter_s < _STAYS_OVER_S
        ]
        return sorted(found, key=lambda one: (-one.bytes, one.device))[:_SHOWN]

    def count_over(self, now_s: float) -> int:
        """Count the devices that are over their share."""
        return sum(
            now_s - max(account.deferred_s, account.litter_s) < _STAYS_OVER_S for account in list(self._deferring.values())
        )

    def _account(self, device: str, now_s: float) -> _Account:
        account = self._accounts.get(device)
        if account is None:
            if len(self._accounts) >= self._max_accounts and now_s - self._swept_s >= _STAYS_OVER_S:
                self._swept_s = now_s
                self._forget_idle(now_s)
            account = _Account(self._config.burst_bytes, self._config.burst_messages, now_s)
            self._accounts[device] = account
        self._fill(account, now_s)
        return account

    def _fill(self, account: _Account, now_s: float) -> None:
        config, elapsed_s = self._config, now_s - account.filled_s
        if elapsed_s <= 0:
            return
        account.filled_s = now_s
        account.bytes_left = min(config.burst_bytes, account.bytes_left + elapsed_s * config.bytes_per_s)
        account.messages_left = min(config.burst_messages, account.messages_left + elapsed_s * config.messages_per_s)
        account.day_bytes *= 0.5 ** (elapsed_s / _DAY_S)

    def _over(self, account: _Account, stream: str, cost_bytes: int, low_room_bytes: int | None) -> str:
        config = self._config
        if low_room_bytes is not None and (account.day_bytes + cost_bytes) * _LOW_DISK_PART > low_room_bytes:
            return DISK
        is_paused = account.limit in (BYTES, MESSAGES)
        least_bytes = min(config.burst_bytes, config.bytes_per_s * _RESUME_S) if is_paused else 0.0
        least_messages = min(config.burst_messages, config.messages_per_s * _RESUME_S) if is_paused else 0.0
        if config.bytes_per_s and (account.bytes_left <= 0 or account.bytes_left < least_bytes):
            return BYTES
        if config.messages_per_s and (account.messages_left <= 0 or account.messages_left < least_messages):
            return MESSAGES
        if stream and config.streams and stream not in account.streams and len(account.streams) >= config.streams:
            return STREAMS
        return ""

    def _defer(self, device: str, account: _Account, limit: str, cost_bytes: int, now_s: float) -> None:
        if now_s - account.deferred_s >= _STAYS_OVER_S:
            account.since_s, account.deferred, account.deferred_bytes = now_s, 0, 0
        account.limit = account.last_limit = limit
        account.deferred_s = now_s
        account.deferred += 1
        account.deferred_bytes += cost_bytes
        self.deferred_messages += 1
        self.deferred_bytes += cost_bytes
        self._deferring[device] = account

    def _wait_s(self, account: _Account) -> float:
        config = self._config
        if account.limit == DISK:
            return _DISK_WAIT_S
        if account.limit == BYTES:
            return max(0.0, min(config.burst_bytes, config.bytes_per_s * _RESUME_S) - account.bytes_left) / config.bytes_per_s
        if account.limit == MESSAGES:
            least = min(config.burst_messages, config.messages_per_s * _RESUME_S)
            return max(0.0, least - account.messages_left) / config.messages_per_s
        return 0.0

    def _reason(self, account: _Account) -> str:
        config = self._config
        return {
            BYTES: f"more than {config.bytes_per_s} bytes/s (after {config.burst_bytes} at once)",
            MESSAGES: f"more than {config.messages_per_s} messages/s (after {config.burst_messages} at once)",
            STREAMS: f"more than {config.streams} streams of one device; messages of further ones are not landed",
            DISK: "the core's disk is nearly full, and this device has brought more than its part of what is left",
        }[account.limit] + "; keep what has no receipt"

    def _forget_idle(self, now_s: float) -> None:
        """Forget devices whose share is full again, so that names alone cannot fill the memory."""
        config = self._config
        for device, account in list(self._accounts.items()):
            self._fill(account, now_s)
            is_full = (not config.bytes_per_s or account.bytes_left >= config.burst_bytes) and (
                not config.messages_per_s or account.messages_left >= config.burst_messages
            )
            if is_full and now_s - max(account.deferred_s, account.litter_s) >= _STAYS_OVER_S:
                del self._accounts[device]
                self._deferring.pop(device, None)
