"""Some rows of an attribution matrix, as a matrix.

Shape suffixes: n rows of the view.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource

BLOCK_ROWS = 4096


@dataclass(frozen=True)
class RowView:
    """The rows `rows`, ascending row numbers of `matrix`; `groups` are the tasks of its columns."""

    matrix: AttributionSource
    rows: np.ndarray
    groups: tuple[str, ...]

    @property
    def shape(self) -> tuple[int, int]:
        return len(self.rows), self.matrix.shape[1]

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for start in range(0, len(self.rows), BLOCK_ROWS):
            row_n = self.rows[start : start + BLOCK_ROWS]
            yield row_n, self.matrix.gather(row_n)

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.matrix.gather(rows)
