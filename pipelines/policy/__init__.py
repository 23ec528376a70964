"""Policies: rules that data scientists write, compiled to column expressions.

In a notebook: `from pipelines.policy import Policy`.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines.policy.notebook import Policy

__all__ = ["Policy"]


def __getattr__(name: str) -> Any:
    """Loads the notebook's class when it is asked for: the commands and runs need none of it."""
    if name == "Policy":
        from pipelines.policy.notebook import Policy  # noqa: PLC0415  # see above

        return Policy
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
