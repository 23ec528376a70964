"""One cell made harmless, as its column says. Pure; what cannot be made harmless raises."""

import hashlib
import hmac
import math
from collections.abc import Callable

import msgspec

from edge_agent.sources.api import Scalar
from schemas.contract import Column, ColumnType
from schemas.redaction import HASH_CHARS, MASK

Redactor = Callable[[Scalar], Scalar]
_MICROS = 1_000_000


class UnredactableError(ValueError):
    """This cell or picture cannot be made harmless: its row must not be stored."""


def redactor(column: Column, key: bytes) -> Redactor | None:
    """Make the function that redacts a cell of this column; None if the contract declares no redaction. Null stays null.

    Args:
        column: of the contract.
        key: of the keyed hash.
    """
    redact = column.redact
    if redact is None:
        return _fields_redactor(column, key)
    if redact.how == "drop":
        return lambda _: None
    if redact.how == "mask":
        return lambda value: mask(value, redact.keep)
    if redact.how == "hash":
        # The column's name is part of what is hashed: equal texts in two columns do not give each other away.
        return lambda value: keyed_hash(value, key, column.name)
    return lambda value: coarsen(value, column, redact.step or 1.0)


def _fields_redactor(column: Column, key: bytes) -> Redactor | None:
    """Make the function that redacts the fields of a struct; None where none of them is redacted."""
    qualified = {field.name: msgspec.structs.replace(field, name=f"{column.name}_{field.name}"[:63]) for field in column.fields}
    found = {name: one for name, field in qualified.items() if (one := redactor(field, key)) is not None}
    if not found:
        return None

    def redact_fields(value: Scalar) -> Scalar:
        if value is None:
            return None
        if not isinstance(value, dict):
            raise UnredactableError(f"column {column.name}: no object")
        return {name: found[name](cell) if name in found else cell for name, cell in value.items()}

    return redact_fields


def mask(value: Scalar, keep: int) -> Scalar:
    """`***` and the last `keep` characters; of a text that is not longer than twice that, nothing is kept."""
    text = _text(value)
    if text is None:
        return None
    return MASK + (text[-keep:] if keep and len(text) > 2 * keep else "")


def keyed_hash(value: Scalar, key: bytes, name: str) -> Scalar:
    """32 hexadecimal digits: equal for equal texts under one key, and nothing without the key."""
    text = _text(value)
    if text is None:
        return None
    return hmac.new(key, f"{name}\0{text}".encode(), hashlib.sha256).hexdigest()[:HASH_CHARS]


def coarsen(value: Scalar, column: Column, step: float) -> Scalar:
    """Down to whole steps, and never outside the column's own bounds. Timestamps: steps of seconds."""
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
        raise UnredactableError(f"column {column.name}: no number to coarsen")
    if column.type is ColumnType.TIMESTAMP:
        return cut_time(int(value), step)
    low = math.floor(value / step) * step
    if column.minimum is not None:
        low = max(low, column.minimum)
    # 8.1 is 81 * 0.1 only to the last bit: digits below the step would look like precision that is not there.
    return int(low) if column.type in (ColumnType.INT32, ColumnType.INT64) else round(low, max(0, 12 - round(math.log10(step))))


def cut_time(micros: int, step_s: float) -> int:
    """Down to whole steps of so many seconds since 1970."""
    step_us = max(1, round(step_s * _MICROS))
    return micros // step_us * step_us


def _text(value: Scalar) -> str | None:
    if value is not None and not isinstance(value, str):
        raise UnredactableError("no text")
    return value
