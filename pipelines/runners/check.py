"""What a graph must not have, so that a runner cannot get it wrong without a word.

Beam's Dask runner computes the last leaf of a graph and nothing else, gives every consumer of tagged outputs all elements,
drops what `finish_bundle` returns, and forgets windows. It ends such a job as done. So a graph for it is looked at first.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from pipelines.errors import RefusedError
from pipelines.runners.beam import DoFnSignature, Read, beam
from pipelines.runners.engine import RunnerKind

# Steps that the Dask runner carries out as a whole; what Beam makes of them inside is not run there.
_WHOLE = (beam.Create, beam.Reshuffle, beam.GroupByKey, Read)


def check_graph(pipeline: Any, kind: RunnerKind) -> None:
    """Refuse a graph that the runner is known to get wrong silently.

    Args:
        pipeline: a Beam pipeline, built and not run.
        kind: the runner.

    Raises:
        RefusedError: with every reason.
    """
    found = list(dask_faults(pipeline)) if kind is RunnerKind.DASK else []
    if found:
        raise RefusedError(f"this graph would come out wrong on {kind.value}: {'; '.join(found)}. Use --runner direct")


def dask_faults(pipeline: Any) -> Iterator[str]:
    """Why a graph is not one linear chain of plain steps; nothing if it is one."""
    steps = [step for part in pipeline.transforms_stack[0].parts for step in _steps(part)]
    consumers = Counter(id(source) for step in steps for source in step.inputs)
    leaves = [step for step in steps if not any(consumers[id(output)] for output in step.outputs.values())]
    if len(leaves) > 1:
        yield f"{len(leaves)} ends ({', '.join(step.full_label for step in leaves)}), of which only the last is computed"
    for step in steps:
        if any(consumers[id(output)] > 1 for output in step.outputs.values()):
            yield f"{step.full_label} has more than one consumer"
        yield from (f"{step.full_label} {fault}" for fault in _step_faults(step))


def _steps(node: Any) -> Iterator[Any]:
    if isinstance(node.transform, _WHOLE) or not node.parts:
        yield node
        return
    for part in node.parts:
        yield from _steps(part)


def _step_faults(step: Any) -> Iterator[str]:
    if len(step.outputs) > 1:
        yield "has tagged outputs"
    if len(step.inputs) > 1:
        yield "has more than one input"
    if step.side_inputs:
        yield "has side inputs"
    if isinstance(step.transform, Read):
        yield "reads with beam.io"
    if isinstance(step.transform, beam.WindowInto) or any(not out.windowing.is_default() for out in step.outputs.values()):
        yield "has windows"
    if isinstance(step.transform, beam.ParDo):
        yield from _function_faults(step.transform.fn)


def _function_faults(function: Any) -> Iterator[str]:
    signature: Any = DoFnSignature(function)
    if signature.is_stateful_dofn():
        yield "keeps state or timers"
    if signature.has_bundle_finalization():
        yield "waits for a bundle's end"
    if type(function).finish_bundle is not beam.DoFn.finish_bundle and not _is_wrapper(function):
        yield "may return elements from finish_bundle"
    if getattr(function, "_process_batch_defined", False):
        yield "takes batches"


def _is_wrapper(function: Any) -> bool:
    """Map and FlatMap wrap a plain function, which has no bundle."""
    return isinstance(function, beam.transforms.core.CallableWrapperDoFn)
