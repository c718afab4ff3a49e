"""Every column of the attribution matrix in ascending order, to look up ranks in.

Shape suffixes: N rows, C columns.
"""

from __future__ import annotations

import tempfile

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.columns import whole_columns

MEMORY_BYTES = 2**30  # of sorted columns; more lie in an unnamed temporary file of that size
FEW = 16  # scores a column: so many columns at once are faster to look up than one after the other


class SortedColumns:
    """The columns `column_C` of a source, sorted, in its dtype: N x C scores, mapped from a file where too many.

    Cost: a pass over the source per group of columns (`whole_columns`), and a sort of each.
    """

    def __init__(self, source: AttributionSource, column_C: np.ndarray) -> None:
        self._rows = source.shape[0]
        self._score_CN: np.ndarray | None = None
        for place, score_N in whole_columns(source, column_C):
            if self._score_CN is None:
                self._score_CN = _room((len(column_C), self._rows), score_N.dtype)
            score_N.sort()
            self._score_CN[place] = score_N

    def shares(self, place_C: np.ndarray, score_XC: np.ndarray) -> np.ndarray:
        """Return rank / N of scores within their columns, of which the last axis has one each, in any order.

        The lowest of a column has 1 / N, equal ones share the mean. A number between two scores of the column gets
        what lies between theirs; -inf stays -inf.
        """
        assert self._score_CN is not None, "a source has rows"
        score_XC = score_XC.astype(self._score_CN.dtype)  # a wider one would have whole columns copied
        columns = np.unique(place_C)
        if score_XC.size <= FEW * len(columns):
            below_XC = self._counts(place_C, score_XC, np.less)
            upto_XC = self._counts(place_C, score_XC, np.less_equal)
        else:
            below_XC, upto_XC = np.empty(score_XC.shape, np.int64), np.empty(score_XC.shape, np.int64)
            for column in columns:
                mine = place_C == column
                below_XC[..., mine] = np.searchsorted(self._score_CN[column], score_XC[..., mine])
                upto_XC[..., mine] = np.searchsorted(self._score_CN[column], score_XC[..., mine], side="right")
        return np.where(np.isneginf(score_XC), -np.inf, (below_XC + upto_XC + 1) / (2 * self._rows))

    def _counts(self, place_C: np.ndarray, score_XC: np.ndarray, before: np.ufunc) -> np.ndarray:
        """Return how many scores of its column are `before` each score: one bisection of all columns together."""
        assert self._score_CN is not None, "a source has rows"
        low_XC, high_XC = np.zeros(score_XC.shape, np.int64), np.full(score_XC.shape, self._rows)
        for _ in range(self._rows.bit_length()):
            middle_XC = (low_XC + high_XC) // 2
            right_XC = before(self._score_CN[place_C, np.minimum(middle_XC, self._rows - 1)], score_XC)
            right_XC &= low_XC < high_XC
            low_XC = np.where(right_XC, middle_XC + 1, low_XC)
            high_XC = np.where(right_XC, high_XC, middle_XC)
        return low_XC


def _room(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    if shape[0] * shape[1] * dtype.itemsize <= MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="influray-") as file:  # it has no name; the map keeps it until it is freed
        return np.memmap(file, dtype, "w+", shape=shape)
