"""Near-duplicates of what is chosen: rows whose feature has a high cosine with that of a chosen row. Exact.

Shape suffixes: n chosen rows, D feature, d coordinates kept of each.
"""

from __future__ import annotations

import math

import numpy as np

from influray.protocols import UnitRows

START = 256  # chosen rows that there is room for at first


class NearDuplicates:
    """Which chosen row a candidate repeats. Memory: d numbers a chosen row, not D.

    u . v <= u' . v' + |u''| |v''| for a part ' of the coordinates and the rest '', by Cauchy and Schwarz: a bound
    over a few evenly spaced coordinates rules out nearly all chosen rows, and the others are looked at whole.
    """

    def __init__(self, features: UnitRows, threshold: float) -> None:
        self._features = features
        self._threshold = threshold
        self._rows: list[int] = []
        self._part_nd: np.ndarray | None = None
        self._rest_n = np.zeros(0)
        self._place_d = np.zeros(0, np.int64)

    def find(self, row: int) -> int | None:
        """Return the earliest chosen row whose cosine with `row` is at or above the threshold."""
        if not self._rows:
            return None
        whole_D = self._features.gather(np.array([row]))[0]
        part_d, rest = self._split(whole_D)
        n = len(self._rows)
        assert self._part_nd is not None
        # A float32 sum of 10^4 products is off by less than 1e-5; a bound may let through too much, never too little.
        bound_n = self._part_nd[:n] @ part_d + self._rest_n[:n] * rest + 1e-4
        for place in np.flatnonzero(bound_n >= self._threshold):
            other_D = self._features.gather(np.array([self._rows[place]]))[0]
            if float(whole_D.astype(np.float64) @ other_D.astype(np.float64)) >= self._threshold:
                return self._rows[place]
        return None

    def add(self, row: int) -> None:
        """Count a row as chosen."""
        whole_D = self._features.gather(np.array([row]))[0]
        if self._part_nd is None:
            # Projected coordinates are alike: a share r of them has about r of the norm, and rules out rows of a
            # cosine under 1 - (1 - threshold) / r.
            share = min(1.0, max(0.05, 4 * (1 - self._threshold)))
            count = max(1, math.ceil(share * len(whole_D)))
            self._place_d = np.linspace(0, len(whole_D) - 1, count).astype(np.int64)
            self._part_nd, self._rest_n = np.empty((START, count), np.float32), np.empty(START, np.float32)
        n = len(self._rows)
        if n == len(self._part_nd):
            self._part_nd = np.concatenate([self._part_nd, np.empty_like(self._part_nd)])
            self._rest_n = np.concatenate([self._rest_n, np.empty_like(self._rest_n)])
        self._part_nd[n], self._rest_n[n] = self._split(whole_D)
        self._rows.append(row)

    def _split(self, whole_D: np.ndarray) -> tuple[np.ndarray, float]:
        part_d = whole_D[self._place_d]
        square = float(whole_D.astype(np.float64) @ whole_D) - float(part_d.astype(np.float64) @ part_d)
        return part_d, math.sqrt(max(square, 0.0))
