"""What a source could not make samples or cells of, counted by reason. Nothing disappears without a count."""

import structlog

_MAX_REASONS = 256

log = structlog.get_logger(__name__)


class Rejects:
    """Counts by reason; each reason is logged when first met and then at every power of ten, never per row.

    Attributes:
        counts: reason -> how many. Reasons that begin with ``row`` are rows that became no sample, with ``cell`` single
            cells that became null, with ``file`` whole files left where they are.
    """

    def __init__(self, source: str) -> None:
        self._source = source
        self.counts: dict[str, int] = {}

    def count(self, reason: str, example: object = "") -> None:
        """One more of that reason."""
        known = reason if reason in self.counts or len(self.counts) < _MAX_REASONS else "other"
        total = self.counts.get(known, 0) + 1
        self.counts[known] = total
        if str(total).strip("0") == "1":
            log.warning("rejected", source=self._source, reason=reason, total=total, example=repr(example)[:200])
