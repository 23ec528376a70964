"""How ODCS's logical types, with physical type or format, name the column types of a contract, and back."""

from schemas.contract import ColumnType

# (logicalType, physicalType or logicalTypeOptions.format) -> column type; "" is what stands without either.
_TYPES: dict[tuple[str, str], ColumnType] = {
    ("string", ""): ColumnType.STRING,
    ("string", "string"): ColumnType.STRING,
    ("string", "binary"): ColumnType.BINARY,
    ("boolean", ""): ColumnType.BOOL,
    ("boolean", "bool"): ColumnType.BOOL,
    ("integer", ""): ColumnType.INT64,
    ("integer", "int64"): ColumnType.INT64,
    ("integer", "i64"): ColumnType.INT64,
    ("integer", "int32"): ColumnType.INT32,
    ("integer", "i32"): ColumnType.INT32,
    ("number", ""): ColumnType.FLOAT64,
    ("number", "float64"): ColumnType.FLOAT64,
    ("number", "f64"): ColumnType.FLOAT64,
    ("number", "float32"): ColumnType.FLOAT32,
    ("number", "f32"): ColumnType.FLOAT32,
    ("timestamp", ""): ColumnType.TIMESTAMP,
    ("timestamp", "timestamp"): ColumnType.TIMESTAMP,
}

# What is written: logicalType and physicalType.
WRITTEN: dict[ColumnType, tuple[str, str]] = {
    ColumnType.STRING: ("string", ""),
    ColumnType.BINARY: ("string", "binary"),
    ColumnType.BOOL: ("boolean", ""),
    ColumnType.INT64: ("integer", "int64"),
    ColumnType.INT32: ("integer", "int32"),
    ColumnType.FLOAT64: ("number", "float64"),
    ColumnType.FLOAT32: ("number", "float32"),
    ColumnType.TIMESTAMP: ("timestamp", ""),
}


def column_type(logical: str, physical: str) -> ColumnType | None:
    """The column type; None if the subset has none for it."""
    return _TYPES.get((logical, physical))


def accepted_types() -> str:
    """What may be written, for an error message."""
    return ", ".join(f"{logical}/{physical}" if physical else logical for logical, physical in _TYPES)
