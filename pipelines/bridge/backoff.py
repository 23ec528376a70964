"""How long to wait before trying the broker again."""

import random

_FIRST_S = 0.1
_MAX_S = 10.0
_STABLE_S = 10.0


class Backoff:
    """Doubles from a tenth of a second to ten seconds, with full jitter; a connection that lasted starts it over."""

    def __init__(self) -> None:
        self._bound_s = _FIRST_S

    def next_s(self) -> float:
        """The next wait, in seconds."""
        wait_s = random.uniform(_FIRST_S / 2, self._bound_s)  # noqa: S311 - spreads reconnects, guards nothing
        self._bound_s = min(self._bound_s * 2, _MAX_S)
        return wait_s

    def tell_lasted(self, seconds: float) -> None:
        """Say how long the last connection held."""
        if seconds >= _STABLE_S:
            self._bound_s = _FIRST_S
