"""How a feature row is kept: float16, one byte a number, or one bit.

Only pool rows are kept in less than float16. Targets stay as they are, so that a product has the error of one side
alone (asymmetric scoring).

Shape suffixes: B rows of one part, D feature.
"""

from __future__ import annotations

import numpy as np
import pyarrow as pa

from influray.protocols import ArtifactMismatch

ENCODINGS = ("float16", "int8", "sign1")
_ALL = slice(None)


def encoded_rows(feature_BD: np.ndarray, encoding: str) -> dict[str, np.ndarray]:
    """Return what is kept of unit rows [B, D] float16, by column, row by row.

    float16: the numbers as they are. int8: the nearest of 255 equal steps from -m to m, m the row's largest magnitude;
    `scale` is the step. sign1: the sign alone, zero counting as positive, the first number in the highest bit.
    """
    B, D = feature_BD.shape
    if encoding == "float16":
        return {"feature": feature_BD}
    if encoding == "int8":
        exact_BD = feature_BD.astype(np.float32)
        scale_B = np.abs(exact_BD).max(axis=1, initial=0) / np.float32(127)
        step_B = np.where(scale_B > 0, scale_B, np.float32(1))
        return {"feature": np.rint(exact_BD / step_B[:, None]).astype(np.int8), "scale": scale_B}
    assert encoding == "sign1", encoding
    return {"feature": np.packbits(feature_BD >= 0, axis=1).reshape(B, -(-D // 8))}


def as_column(value: np.ndarray) -> pa.Array:
    """Return an Arrow column of one number a row [B], or of a list of fixed length [B, w]."""
    if value.ndim == 1:
        return pa.array(value)
    return pa.FixedSizeListArray.from_arrays(pa.array(np.ascontiguousarray(value).reshape(-1)), value.shape[1])


def decoded(table: pa.Table, dimension: int, lines: slice | np.ndarray = _ALL) -> np.ndarray:
    """Return lines of a part as [B, D] float16: a view of the file for a slice, where nothing is to decode.

    A row of signs comes back as +-1/sqrt(D), a unit row.

    Raises:
        ArtifactMismatch: the rows are kept in another way than these.
    """
    stored_BD = _stored(table)
    taken_BD = stored_BD[lines] if isinstance(lines, slice) else np.take(stored_BD, lines, axis=0)
    return _numbers(taken_BD, table, lines, dimension)


def widen(half_BD: np.ndarray, out_BD: np.ndarray) -> None:
    """Copy float16 rows to float32 or float64 ones. torch does it five to ten times as fast as numpy."""
    import torch

    # By way of Arrow, since torch warns of arrays that are maps for reading only.
    half = torch.from_dlpack(pa.array(np.ascontiguousarray(half_BD).reshape(-1)))
    torch.from_numpy(out_BD).copy_(half.view(half_BD.shape))


def widened(half_BD: np.ndarray, dtype: type) -> np.ndarray:
    """Return float16 rows as float32 or float64, a copy."""
    out_BD = np.empty(half_BD.shape, dtype)
    widen(half_BD, out_BD)
    return out_BD


def _stored(table: pa.Table) -> np.ndarray:
    """Return the rows of a part as they are kept, a view of the file."""
    kind = table.schema.field("feature").type
    chunks = table["feature"].chunks or [pa.array([], kind)]
    assert len(chunks) == 1, "a part is one record batch"
    return chunks[0].flatten().to_numpy(zero_copy_only=True).reshape(len(chunks[0]), kind.list_size)


def _numbers(stored_BD: np.ndarray, table: pa.Table, lines: slice | np.ndarray, dimension: int) -> np.ndarray:
    if stored_BD.dtype == np.float16:
        return stored_BD
    if stored_BD.dtype == np.int8:
        scale_B = table["scale"].to_numpy()[lines]
        return (stored_BD * scale_B[:, None]).astype(np.float16)
    if stored_BD.dtype == np.uint8:
        sign_BD = np.unpackbits(stored_BD, axis=1, count=dimension)
        return np.array([-1, 1], np.float16)[sign_BD] * np.float16(dimension**-0.5)
    raise ArtifactMismatch(
        f"features of type {table.schema.field('feature').type.value_type}, expected one of {', '.join(ENCODINGS)}; "
        "featurize again"
    )
