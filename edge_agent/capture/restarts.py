"""How long a source that failed rests before it is built anew. Pure."""

from dataclasses import dataclass

from catchment.runtime.backoff import doubled_s

FIRST_S = 0.5
CAP_S = 60.0
# A source that gave samples for so many times its last rest is well again; one that gives a few and fails each time is not.
_WELL = 4


@dataclass(slots=True)
class Restarts:
    """Twice as long each time, from the first on again once the source was well."""

    failures: int = 0
    rest_s: float = 0.0

    def next_s(self, ran_s: float, *, gave: bool, is_done: bool) -> float:
        """The rest before the next try.

        Args:
            ran_s: how long it ran.
            gave: whether it gave samples.
            is_done: whether it ended as it should and only begins again.
        """
        if gave and (is_done or ran_s >= _WELL * self.rest_s):
            self.failures = 0
        self.rest_s = doubled_s(FIRST_S, CAP_S, self.failures)
        self.failures += 1
        return self.rest_s
