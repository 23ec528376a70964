"""Which samples of a stream are sent within an hourly budget: the telling ones first, and some by pure chance.

Each sample has a chance that is fixed before it is drawn, from its own score and from what came before it (Poisson sampling). The
chance is never 0 and is stored with what is sent, so that the samples speak for those that were not (D. G. Horvitz and
D. J. Thompson, JASA 47:260, 1952).
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from types import MappingProxyType

from edge_agent.sources.api import SampleBatch, Scalar
from schemas.edge_policy import UPLOAD_SHARE, EdgeUpload, UploadScore

LEFT_OUT = "upload: budget"
_SPAN = 2**64
# What can be saved up: a tenth of an hour's bytes. How full that is says how eagerly samples are sent, over six decades.
_SAVED_HOURS = 0.1
_DECADES = 6.0
_ROW_BYTES = 200
_LEAST = 1e-3
_MEMORY = 500  # samples over which the usual score is followed
_RARE = 0.1  # a label given in fewer answers than this is worth the most
_MAX_LABELS = 1_024
_NO_RATES: Mapping[int, float] = MappingProxyType({})


@dataclass(frozen=True, slots=True)
class Chosen:
    """Rows that are sent, and the chance that each one had."""

    rows: list[int]
    shares: list[float]


class UploadChoice:
    """Chooses among the samples of one stream. Used by its source's thread alone.

    Args:
        rule: budget and score.
        device: this device.
        stream: the stream.
        now_s: a clock that never goes back, seconds.
    """

    def __init__(self, rule: EdgeUpload, device: str, stream: str, now_s: Callable[[], float]) -> None:
        self._rule = rule
        self._key = blake2b(f"upload/{device}/{stream}".encode(), digest_size=16).digest()
        self._now_s = now_s
        self._saved_limit = rule.bytes_per_h * _SAVED_HOURS
        self._saved = self._saved_limit / 2
        self._at_s = now_s()
        self._usual = 0.1
        self._labels: dict[Scalar, int] = {}
        self._labelled = 0

    def __call__(
        self, batch: SampleBatch, forced: frozenset[int] = frozenset(), rates: Mapping[int, float] = _NO_RATES
    ) -> Chosen:
        """Choose among the rows of a batch.

        Args:
            batch: with the columns that the score reads.
            forced: rows that are sent whatever their score is.
            rates: row -> the chance with which a rule had left it in the batch; 1 for the others.
        """
        now_s = self._now_s()
        self._saved = min(self._saved_limit, self._saved + (now_s - self._at_s) * self._rule.bytes_per_h / 3_600)
        self._at_s = now_s
        scores, chosen = self._scores(batch), Chosen([], [])
        for row in range(len(batch)):
            share = 1.0 if row in forced else self._share(scores[row])
            if share >= 1.0 or self._chance(batch, row) < share:
                chosen.rows.append(row)
                chosen.shares.append(share * rates.get(row, 1.0))
                self._saved -= _bytes_of(batch, row)
        return chosen

    def _share(self, score: float) -> float:
        """The chance of a sample: by pure chance, or for its score."""
        eager = 10 ** (_DECADES * (min(1.0, max(0.0, self._saved / self._saved_limit)) - 0.5))
        by_chance = min(1.0, eager * self._rule.random_share * self._usual)
        by_score = min(1.0, eager * (1 - self._rule.random_share) * score)
        self._usual = max(_LEAST, self._usual + (score - self._usual) / _MEMORY)
        return 1 - (1 - by_chance) * (1 - by_score)

    def _chance(self, batch: SampleBatch, row: int) -> float:
        """A number from 0 to below 1, evenly spread and fixed for a sample; another one than that of the rules."""
        values = [batch.event_time_us[row], *(batch.columns[name][row] for name in sorted(batch.columns))]
        digest = blake2b(repr(values).encode("utf-8", "surrogatepass"), key=self._key, digest_size=8).digest()
        return int.from_bytes(digest, "big") / _SPAN

    def _scores(self, batch: SampleBatch) -> list[float]:
        """How telling each sample is, 0 to 1; without a prediction 0."""
        absent: Sequence[Scalar] = [None] * len(batch)
        labels = batch.columns.get("predicted_label", absent)
        if self._rule.score is UploadScore.MARGIN:
            return [_doubt(score) for score in batch.columns.get("predicted_score", absent)]
        if self._rule.score is UploadScore.RARITY:
            return [self._rarity(label) for label in labels]
        others = batch.columns.get(self._rule.other, absent)
        return [
            float(label != other) if label is not None and other is not None else 0.0
            for label, other in zip(labels, others, strict=True)
        ]

    def _rarity(self, label: Scalar) -> float:
        """How seldom the model gave a label so far: 1 for one in ten answers or fewer."""
        if label is None:
            return 0.0
        if label not in self._labels and len(self._labels) >= _MAX_LABELS:
            return 1.0
        share = (self._labels.get(label, 0) + 1) / (self._labelled + 1)
        self._labels[label] = self._labels.get(label, 0) + 1
        self._labelled += 1
        return min(1.0, _RARE / share)


def with_shares(batch: SampleBatch, shares: Sequence[float]) -> dict[str, Sequence[Scalar]]:
    """The columns of a batch, and the chance of each sample."""
    return {**batch.columns, UPLOAD_SHARE: list(shares)}


def _doubt(score: Scalar) -> float:
    """One less the score: for two classes the margin between them, halved."""
    return min(1.0, max(0.0, 1.0 - score)) if isinstance(score, int | float) else 0.0


def _bytes_of(batch: SampleBatch, row: int) -> int:
    payload = None if batch.payloads is None else batch.payloads[row]
    if isinstance(payload, Path):
        try:
            return _ROW_BYTES + payload.stat().st_size
        except OSError:
            return _ROW_BYTES  # the spool says what is wrong with it
    return _ROW_BYTES + (0 if payload is None else len(payload))
