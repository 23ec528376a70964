"""Writes docs/api.md: the public names of `import catchment`, from their docstrings. A test compares: run it when one changes."""

import inspect
import re
import textwrap
from pathlib import Path
from typing import Any

import catchment

PAGE = Path(__file__).parents[1] / "docs" / "api.md"

HEAD = """# `import catchment`

For people who write Python: notebooks, training code, plug-ins. These names stay; everything below `pipelines`, `edge_agent`
and `schemas` may change with any release. `python scripts/api_docs.py` writes this page from the docstrings; a test compares.

```python
import catchment

train = catchment.open_set("lake/sets/braking/1", "train")
for sample in train.shuffled(seed=7, epoch=0):
    ...  # sample.payload, sample["speed_mps"]

lake = catchment.open_lake("lake")
fast = lake.rows("vehicle_telemetry", columns=["device", "speed_mps"], where="speed_mps > 30")
```

`import catchment` alone loads nothing else: names are loaded when first used. `Source`, `SampleBatch` and their errors come with
the bare install; the others need `pip install 'catchment[core]'`.
"""
GROUPS = (
    ("Training sets", ("open_set", "TrainingSet", "mix_sets", "MixedSets", "Sample", "ShuffledSamples", "EpochState")),
    ("The lake", ("open_lake", "LakeView")),
    ("Policies and contracts", ("Policy", "Contract")),
    ("Sources of your own", ("Source", "SampleBatch")),
    ("Errors", ("PipelineError", "ConfigError", "SourceError", "SourceAgainError", "SourceEndedError")),
)


def written() -> str:
    """The page."""
    parts = [HEAD]
    for title, names in GROUPS:
        parts.append(f"## {title}\n")
        parts += [_entry(name, getattr(catchment, name)) for name in names]
    return "\n".join(parts)


def _entry(name: str, value: Any) -> str:
    lines = [f"### `{name}{_signature(value)}`\n", _block(value)]
    if inspect.isclass(value) and not issubclass(value, Exception):
        for method_name, method in sorted(_methods(value).items()):
            function = method.__func__ if isinstance(method, classmethod | staticmethod) else method
            if method_name.startswith("_") or not (inspect.isfunction(function) or isinstance(function, property)):
                continue
            shown = "" if isinstance(function, property) else _signature(function)
            lines.append(f"#### `{name}.{method_name}{shown}`\n")
            lines.append(_block(function))
    return "\n".join(lines)


def _methods(value: type) -> dict[str, Any]:
    """Its own, and what a training set inherits; a mix has the same, which its docstring says."""
    inherited = vars(value.__mro__[1]) if value.__name__ == "TrainingSet" else {}
    hidden = (
        "chunks",
        "payloads",
        "has_payload",
        "trusted",
        "mark_compared",
        "names",
        "expect",
        "order",
        "source",
        "identity",
        "array_batch",
    )
    return {name: method for name, method in {**inherited, **vars(value)}.items() if name not in hidden}


def _signature(value: Any) -> str:
    if inspect.isclass(value) and (issubclass(value, Exception) or getattr(value, "_is_protocol", False)):
        return ""
    text = str(inspect.signature(value)).replace("(self, ", "(").replace("(self)", "()")
    text = re.sub(r"(: |-> )'([^']*)'", r"\1\2", text)
    # Where a type lives is no reader's business.
    return re.sub(r"\b(?:[a-z_]+\.)+(?=[A-Z])", "", text)


def _block(value: Any) -> str:
    text = inspect.cleandoc(value.__doc__ or "")
    text = re.sub(r"^(Args|Raises|Returns|Attributes|Yields):$", r"**\1:**\n", text, flags=re.MULTILINE)
    return re.sub(r"^    (\w[\w, ]*):", r"- `\1`:", textwrap.dedent(text), flags=re.MULTILINE) + "\n"


if __name__ == "__main__":
    PAGE.write_text(written())
