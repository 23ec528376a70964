"""A source of one's own: counts down, a log line each, and goes on where it was."""

from catchment import ConfigError, SampleBatch, SourceEndedError

# The options that say what is read. A change of another one, such as `text`, keeps the position.
IDENTITY = ("start",)


class Countdown:
    """`read` yields samples and says where to go on; `stored` and `close` tell what became of them."""

    def __init__(self, left, text, clock):
        self.left, self.text, self.clock = left, text, clock

    def read(self, max_samples):
        if self.left == 0:
            raise SourceEndedError("lift-off")
        now = range(self.left, max(0, self.left - max_samples), -1)
        self.left = now[-1] - 1
        times = [self.clock.now_ms() * 1000] * len(now)
        return SampleBatch(times, {"message": [f"{self.text}{n}" for n in now]}, None, str(self.left).encode(), agent_clock=True)

    def stored(self, batch):
        """This batch is durable: what it was made of may be deleted."""

    def close(self):
        """Close files and ports."""


def build(options, contract, clock, position):
    """Called at the start and after each failure, with the position stored last."""
    check(options, contract)
    return Countdown(options["start"] if position is None else int(position), options.get("text", ""), clock)


def check(options, contract):
    """Called by `edge-agent check`: all that can be checked without opening anything."""
    if not isinstance(options.get("start"), int) or not set(options) <= {"start", "text"}:
        raise ConfigError("source 'countdown': give start, a whole number, perhaps text, and nothing else")
