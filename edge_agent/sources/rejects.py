"""What a source could not make samples or cells of, counted by reason. Nothing disappears without a count."""

import structlog

_MAX_REASONS = 256
# Reasons that are as things should be: counted, never a warning.
_QUIET = "report"

log = structlog.get_logger(__name__)


class Rejects:
    """Counts by reason; each reason is logged when first met and then at every power of ten, never per row.

    Attributes:
        counts: reason -> how many. Reasons that begin with ``row`` are rows that became no sample, with ``cell`` single
            cells that became null, with ``file`` whole files left where they are, with ``report`` samples that said
            nothing new.
    """

    def __init__(self, source: str, *, is_quiet: bool = False) -> None:
        self._source = source
        self._is_quiet = is_quiet  # of a look ahead: the same rows are counted aloud when they are read
        self.counts: dict[str, int] = {}

    def count(self, reason: str, example: object = "", times: int = 1) -> None:
        """So many more of that reason."""
        known = reason if reason in self.counts or len(self.counts) < _MAX_REASONS else "other"
        before = self.counts.get(known, 0)
        total = before + times
        self.counts[known] = total
        if self._is_quiet:
            return
        if len(str(total)) > (len(str(before)) if before else 0) and not reason.startswith(_QUIET):
            log.warning("rejected", source=self._source, reason=reason, total=total, example=repr(example)[:200])
