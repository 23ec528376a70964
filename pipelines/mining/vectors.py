"""Embedding columns: which there are, and their values as unit vectors. Pure functions over columns."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from pipelines.errors import RefusedError

Float32s = npt.NDArray[np.float32]
Int64s = npt.NDArray[np.int64]
MAX_DIMENSIONS = 65_536
_SUFFIX = "_embedding"
_FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Vectors:
    """Unit vectors of some rows: `rows` (vectors,) their numbers, `units` (vectors, dimensions), `skipped` rows without one."""

    rows: Int64s
    units: Float32s
    skipped: int


def embedding_column(schema: pa.Schema, name: str = "") -> str:
    """The embedding column of a stream: the one that is named, else the only one.

    Raises:
        RefusedError: there is none, there are several, or the named one holds no vectors.
    """
    if name:
        if name not in schema.names or not _holds_vectors(schema.field(name).type):
            raise RefusedError(f"no embedding column {name[:80]!r}; there are {_listed(schema)}")
        return name
    found = [field.name for field in schema if field.name.endswith(_SUFFIX) and _holds_vectors(field.type)]
    if not found:
        raise RefusedError(
            f"the stream has no column that ends with {_SUFFIX}; let a policy compute one (use: onnx, kind: embedding), "
            "or name a column of vectors (--column)"
        )
    if len(found) > 1:
        raise RefusedError(f"several embedding columns: {', '.join(found)}; name one (--column)")
    return str(found[0])


def dimensions_of(column: pa.ChunkedArray | pa.Array) -> int:
    """The dimensions of the first vector of a column; 0 where there is none."""
    sizes = pc.drop_null(_sizes(column))
    sizes = sizes.filter(pc.greater(sizes, 0))
    return int(sizes[0].as_py()) if len(sizes) else 0


def unit_vectors(column: pa.ChunkedArray | pa.Array, dimensions: int) -> Vectors:
    """The vectors of a column that have so many dimensions, each with length 1.

    Nulls, vectors of another length, zeros and vectors with a value that is not finite are left out and counted.
    """
    whole = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    fits = np.asarray(pc.fill_null(pc.equal(_sizes(whole), dimensions), fill_value=False).to_numpy(zero_copy_only=False), bool)
    rows = np.flatnonzero(fits)
    values = _values(whole.filter(pa.array(fits)), dimensions)
    lengths = np.sqrt(np.einsum("ij,ij->i", values, values, dtype=np.float64))
    sound = np.isfinite(lengths) & (lengths > 0)
    units = values[sound] / lengths[sound, None]
    return Vectors(rows[sound].astype(np.int64), units.astype(np.float32), len(whole) - int(sound.sum()))


def _values(whole: pa.Array, dimensions: int) -> Float32s:
    """(rows, dimensions) of an array without nulls whose vectors all have one length."""
    if _is_binary(whole.type):
        flat = np.frombuffer(_value_bytes(whole), "<f4")
    else:
        flat = np.asarray(pc.fill_null(pc.cast(pc.list_flatten(whole), pa.float32(), safe=False), float("nan")).to_numpy())
    return flat.reshape(len(whole), dimensions).astype(np.float32, copy=False)


def _value_bytes(whole: pa.Array) -> pa.Buffer:
    """The bytes of all values; they lie end to end, for there are no nulls."""
    kind = np.int64 if pa.types.is_large_binary(whole.type) else np.int32
    offsets = np.frombuffer(whole.buffers()[1], kind)[whole.offset : whole.offset + len(whole) + 1]
    return whole.buffers()[2].slice(int(offsets[0]), int(offsets[-1] - offsets[0])) if len(whole) else pa.py_buffer(b"")


def _sizes(column: pa.ChunkedArray | pa.Array) -> pa.Array:
    if _is_binary(column.type):
        bytes_each = pc.cast(pc.binary_length(column), pa.int64())
        # A length that is no whole number of floats gives none that fits.
        return pc.if_else(pc.equal(pc.bit_wise_and(bytes_each, 3), 0), pc.divide(bytes_each, _FLOAT_BYTES), -1)
    return pc.cast(pc.list_value_length(column), pa.int64())


def _holds_vectors(of: pa.DataType) -> bool:
    is_list = pa.types.is_list(of) or pa.types.is_large_list(of) or pa.types.is_fixed_size_list(of)
    return _is_binary(of) or bool(is_list and pa.types.is_floating(of.value_type))


def _is_binary(of: pa.DataType) -> bool:
    return bool(pa.types.is_binary(of) or pa.types.is_large_binary(of))


def _listed(schema: pa.Schema) -> str:
    return ", ".join(field.name for field in schema if _holds_vectors(field.type)) or "none"
