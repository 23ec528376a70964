"""What `edge-agent check` can know of a source by looking at what is there: columns never filled, times that cannot be read.

Files are looked at, and only where a second reader takes nothing from the agent; nothing is listened to or started.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from edge_agent.config import SourceConfig
from edge_agent.sources.registry import names_given
from edge_agent.sources.rows.cells import tells_no_zone
from edge_agent.sources.rows.required import explain_unfilled, unfilled_columns
from edge_agent.trial.quiet import quiet_log
from edge_agent.trial.reading import TrialReader
from edge_agent.trial.result import Trial
from schemas.contract import Contract

_SAMPLES = 200
_WAIT_S = 5.0
# Kinds that read a file from its start, and the option that names it.
_FILES = {"can": "log", "replay": "path", "tail": "path", "zeek": "path"}


def examine_source(source: SourceConfig, contract: Contract, key: bytes) -> Iterator[str]:
    """What is wrong with a source whose options are right in themselves."""
    start = source.resolved.get("time_start", "")
    if isinstance(start, str) and tells_no_zone(start) and not source.resolved.get("time_zone"):
        yield f"source {source.kind!r}: time_start = {start!r} tells no zone; write 2024-05-01T00:00:00Z or +02:00 at its end"
    names = names_given(source.kind, source.resolved, contract)
    if names is not None:
        unfilled = unfilled_columns(contract, names)
        if unfilled:
            yield f"source {source.kind!r}: {explain_unfilled(contract, unfilled, names)}"
            return
    path = source.resolved.get(_FILES.get(source.kind, ""), "")
    if isinstance(path, str) and path and Path(path).is_file():
        with quiet_log():
            trial = TrialReader(source, contract, key).read(_SAMPLES, _WAIT_S)
        yield from _of_trial(trial, path)


def _of_trial(trial: Trial, path: str) -> Iterator[str]:
    if trial.failure:
        yield f"source {trial.kind!r}: {path}: {trial.failure.removeprefix(f'source {trial.kind!r}: ')}"
        return
    refused = Counter({reason: count for reason, count in trial.rejected.items() if not reason.startswith("report:")})
    if not trial.samples and refused:
        reason, count = refused.most_common(1)[0]
        yield f"source {trial.kind!r}: {path}: no row becomes a sample: {reason} ({count:,})"
    elif trial.samples and trial.refused == len(trial.samples):
        reason, count = Counter(sample.refusal for sample in trial.samples).most_common(1)[0]
        why = next((f"; {cell}" for cell in trial.rejected if cell.startswith(f"cell {reason.partition(':')[0]}:")), "")
        yield f"source {trial.kind!r}: {path}: the core would refuse each of the first {count:,} samples: {reason}{why}"
