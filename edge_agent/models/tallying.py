"""Sums of a version on this device, and the comparison of a candidate with the version that answers."""

import time
from collections import Counter
from pathlib import Path

import structlog

from edge_agent.errors import ModelDiedError, ModelError, UnreadablePictureError
from edge_agent.models.model_process import ModelProcess
from schemas.model_tally import MAX_PAIRS, ModelTally, latency_bin

log = structlog.get_logger(__name__)


class VersionTally:
    """Sums of one version since this process began to run it. The caller holds a lock.

    Args:
        version: which one.
    """

    def __init__(self, version: int) -> None:
        self.version = version
        self.inferences = self.failures = self.deaths = self.compared = 0
        self._latency: Counter[int] = Counter()
        self._pairs: Counter[tuple[str, str]] = Counter()

    def note_answers(self, samples: int, milliseconds: float) -> None:
        """Enter answers that took so long together."""
        self.inferences += samples
        self._latency[latency_bin(milliseconds / samples)] += samples

    def note_comparison(self, ours: str, theirs: str) -> None:
        """Enter the labels that this version and a candidate gave one picture."""
        self.compared += 1
        if ours != theirs:
            self._pairs[ours[:64], theirs[:64]] += 1

    def frozen(self) -> ModelTally:
        """The sums as they are reported; of the pairs of labels the most frequent ones."""
        return ModelTally(
            self.version,
            self.inferences,
            self.failures,
            self.deaths,
            tuple(sorted(self._latency.items())),
            self.compared,
            self._pairs.total(),
            tuple((ours, theirs, count) for (ours, theirs), count in self._pairs.most_common(MAX_PAIRS)),
        )


class Shadow:
    """A candidate that looks at every k-th picture next to the version that answers. One thread asks; any may look.

    Args:
        process: the candidate, loaded.
        every: every how manieth picture.
        cpu_share: of the time since it began, what the candidate may take.
        frames: so many comparisons are enough.
        longest_s: so long is enough, too.
        began_s: now, by the monotonic clock.
    """

    def __init__(
        self, process: ModelProcess, *, every: int, cpu_share: float, frames: int, longest_s: float, began_s: float
    ) -> None:
        self.process = process
        self.failure = ""
        self.compared = 0
        self._every = every
        self._cpu_share = cpu_share
        self._frames = frames
        self._ends_s = began_s + longest_s
        self._began_s = time.monotonic()
        self._taken_s = 0.0
        self._seen = 0

    def is_over(self, now_s: float) -> bool:
        """Whether enough was compared, or it took long enough."""
        return self.compared >= self._frames or now_s >= self._ends_s

    def label_of(self, payload: bytes | Path) -> str | None:
        """The candidate's label of a picture; None where it is not its turn, or it has no answer."""
        self._seen += 1
        elapsed_s = time.monotonic() - self._began_s
        is_its_turn = self._seen % self._every == 0 and self._taken_s <= self._cpu_share * elapsed_s
        if self.failure or self.compared >= self._frames or not is_its_turn:
            return None
        began_s = time.monotonic()
        try:
            (answer,) = self.process.look_at(payload)
        except UnreadablePictureError:
            return None
        except ModelDiedError as error:
            self.failure = str(error)
            log.error("shadow_died", reason=self.failure)  # noqa: TRY400  # the reason says it all
            return None
        except ModelError as error:
            log.warning("shadow_failed", reason=str(error))
            return None
        finally:
            self._taken_s += time.monotonic() - began_s
        self.compared += 1
        return str(answer.get("predicted_label"))
