"""Every column of the attribution matrix in ascending order, to look up ranks in.

Shape suffixes: N rows, C columns.
"""

from __future__ import annotations

import tempfile

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.columns import whole_columns

MEMORY_BYTES = 2**30  # of sorted columns; more lie in an unnamed temporary file of that size


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

    def shares(self, place: int, score: np.ndarray) -> np.ndarray:
        """Return rank / N of scores within the column at `place`: the lowest has 1 / N, equal ones share the mean.

        A number between two scores of the column gets what lies between theirs; -inf stays -inf.
        """
        assert self._score_CN is not None, "a source has rows"
        sorted_N = self._score_CN[place]
        score = score.astype(sorted_N.dtype)  # a wider one would have the whole column copied
        below, upto = np.searchsorted(sorted_N, score), np.searchsorted(sorted_N, score, side="right")
        return np.where(np.isneginf(score), -np.inf, (below + upto + 1) / (2 * self._rows))


def _room(shape: tuple[int, int], dtype: np.dtype) -> np.ndarray:
    if shape[0] * shape[1] * dtype.itemsize <= MEMORY_BYTES:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(prefix="influray-") as file:  # it has no name; the map keeps it until it is freed
        return np.memmap(file, dtype, "w+", shape=shape)
