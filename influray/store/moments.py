"""Mean, spread and reach of every column of the attribution matrix, in float64, whatever the block size.

The matrix is cut into chunks of a fixed number of rows, wherever its blocks end; each chunk is summed around its
own mean and the chunks are merged as a binary tree by Chan's formula. So the numbers belong to the matrix alone,
and rounding grows with the logarithm of its length.

Shape suffixes: N rows, T target columns, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from influray.protocols import DataError

CHUNK_ROWS = 256  # fits the cache at some hundreds of columns; part of what makes the bits repeat
MEDIAN_FLOOR = 1e-12  # times the median std
PEAK_FLOOR = 2.0**-22  # times the largest absolute value: below it a float32 column is rounding noise


@dataclass(frozen=True)
class ColumnMoments:
    """Count, mean, sum of squared deviations and largest absolute value of each column; NaN where non-finite.

    The mean is kept in two parts, so that merging loses nothing where it is large against the spread.
    """

    count: int
    shift_T: np.ndarray
    offset_T: np.ndarray  # mean - shift
    m2_T: np.ndarray
    peak_T: np.ndarray

    @property
    def mean(self) -> np.ndarray:
        """The mean over the pool, [T]."""
        return self.shift_T + self.offset_T

    @property
    def std(self) -> np.ndarray:
        """The standard deviation over the pool (ddof 0), [T]."""
        return np.sqrt(self.m2_T / self.count)


@dataclass(frozen=True)
class ColumnStats:
    """What standardising needs of each column, and which columns take part."""

    mean_T: np.ndarray
    std_T: np.ndarray
    used_T: np.ndarray  # bool

    @property
    def finite(self) -> np.ndarray:
        return np.isfinite(self.mean_T) & np.isfinite(self.std_T)

    def left_out(self) -> dict[int, str]:
        """Return column -> why it takes no part: "non-finite" or "constant", ascending."""
        finite_T = self.finite
        return {int(j): "constant" if finite_T[j] else "non-finite" for j in np.flatnonzero(~self.used_T)}


def moments_of(block_BT: np.ndarray, row_B: np.ndarray) -> ColumnMoments:
    """Return the moments of a block: two passes around its own mean, corrected for that mean's rounding.

    Raises:
        DataError: a row has no finite value at all; it names the row.
    """
    count = len(block_BT)
    if count == 0:
        zero_T = np.zeros(block_BT.shape[1])
        return ColumnMoments(0, zero_T, zero_T, zero_T, zero_T)
    with np.errstate(invalid="ignore", over="ignore"):  # non-finite values are looked for below
        deviation_BT = block_BT.astype(np.float64)
        shift_T = deviation_BT.sum(axis=0) / count
        deviation_BT -= shift_T
        offset_T = deviation_BT.sum(axis=0) / count
        np.multiply(deviation_BT, deviation_BT, out=deviation_BT)
        m2_T = deviation_BT.sum(axis=0) - count * offset_T * offset_T
        peak_T = np.maximum(block_BT.max(axis=0), -block_BT.min(axis=0)).astype(np.float64)
    if not np.isfinite(shift_T).all():
        dead_B = ~np.isfinite(block_BT).any(axis=1)
        if dead_B.any():
            raise DataError(
                f"attribution: row {int(row_B[dead_B.argmax()])} has no finite score in any of the "
                f"{block_BT.shape[1]} columns; leave it out of the matrix or score it again"
            )
    return ColumnMoments(count, shift_T, offset_T, np.maximum(m2_T, 0.0), peak_T)


def merge(one: ColumnMoments, other: ColumnMoments) -> ColumnMoments:
    """Return the moments of both parts together. Source: Chan, Golub, LeVeque 1979, formulas 2.1."""
    if one.count == 0 or other.count == 0:
        return one if other.count == 0 else other
    count = one.count + other.count
    with np.errstate(invalid="ignore", over="ignore"):
        gap_T = (other.shift_T - one.shift_T) + (other.offset_T - one.offset_T)
        offset_T = one.offset_T + gap_T * (other.count / count)
        m2_T = one.m2_T + other.m2_T + gap_T * gap_T * (one.count * other.count / count)
    return ColumnMoments(count, one.shift_T, offset_T, m2_T, np.maximum(one.peak_T, other.peak_T))


def column_moments(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> ColumnMoments:
    """Return the moments of a whole matrix, bit for bit the same for any cut into blocks.

    Raises:
        DataError: the matrix has no row, or a row with no finite value.
    """
    return merge_in_order(moments_of(chunk_BT, row_B) for row_B, chunk_BT in _chunks(blocks))


def range_moments(blocks: Iterable[tuple[np.ndarray, np.ndarray]], start: int) -> ColumnMoments:
    """Return the moments of a range of rows, for `map_ranges`. Raises as `column_moments`."""
    return column_moments(blocks)


def merge_in_order(parts: Iterable[ColumnMoments]) -> ColumnMoments:
    """Return the moments of all parts together, merged as a binary tree.

    The parts are chunks, or ranges of chunks: of a power of two of them each, but for the last, they are whole
    branches of the tree over the chunks, and the bits are the same.

    Raises:
        DataError: there is no part.
    """
    waiting: list[ColumnMoments] = []  # one per set bit of the number of parts so far
    for number, part in enumerate(parts, start=1):
        total, pairs = part, number
        while pairs % 2 == 0:
            total, pairs = merge(waiting.pop(), total), pairs // 2
        waiting.append(total)
    if not waiting:
        raise DataError("attribution: the matrix has no rows; nothing can be selected from it")
    total = waiting.pop()
    while waiting:
        total = merge(waiting.pop(), total)
    return total


def column_stats(moments: ColumnMoments) -> ColumnStats:
    """Return mean, std and whether each column is used.

    A column is left out when it is non-finite, or when its std is at or below the larger of 1e-12 times the
    median std and 2^-22 times its largest absolute value.
    """
    mean_T, std_T = moments.mean, moments.std
    finite_T = np.isfinite(mean_T) & np.isfinite(std_T)
    used_T = finite_T.copy()
    if finite_T.any():
        floor_T = np.maximum(MEDIAN_FLOOR * np.median(std_T[finite_T]), PEAK_FLOOR * moments.peak_T)
        used_T[finite_T] = std_T[finite_T] > floor_T[finite_T]
    return ColumnStats(mean_T, std_T, used_T)


def _chunks(blocks: Iterable[tuple[np.ndarray, np.ndarray]]) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    rows: list[np.ndarray] = []
    parts: list[np.ndarray] = []
    held = 0
    for row_B, block_BT in blocks:
        start = 0
        while start < len(block_BT):
            stop = min(len(block_BT), start + CHUNK_ROWS - held)
            rows.append(row_B[start:stop])
            parts.append(block_BT[start:stop])
            held += stop - start
            start = stop
            if held == CHUNK_ROWS:
                yield _joined(rows), _joined(parts)
                rows, parts, held = [], [], 0
    if held:
        yield _joined(rows), _joined(parts)


def _joined(parts: list[np.ndarray]) -> np.ndarray:
    return parts[0] if len(parts) == 1 else np.concatenate(parts)
