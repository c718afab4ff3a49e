"""Near-duplicates of what is chosen: rows whose feature has a high cosine with that of a chosen row.

What is said to be a near-duplicate is one: it is compared in float64. A near-duplicate is overlooked with a chance
below 1e-12 (`sketches`), never where sketches are whole rows (`SIZES`).

Rows that are likely to be proposed are read in blocks beforehand and sketched; every BLOCK chosen rows are compared
with all of them at once. What is proposed then has few chosen rows left to be compared with, and mostly none.

Shape suffixes: N rows, U rows that are expected, n chosen rows, B rows of a block, K blocks of chosen rows, D feature,
m numbers of a sketch.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import UnitRows
from influray.selectors.sketches import MOST_BYTES, READ_ROWS, Sketches, known_sketches

BLOCK = 256  # chosen rows that are compared with the expected ones at once
COMPARED_ROWS = 4096
ROUNDING = 1e-12  # of a cosine in float64: at a threshold of 1.0 rows of the same numbers are near-duplicates


class NearDuplicates:
    """Which chosen row a candidate repeats; all are of `row_N`. Memory: a sketch of each chosen and expected row."""

    def __init__(self, features: UnitRows, threshold: float, row_N: np.ndarray) -> None:
        self._features = features
        self._threshold = threshold
        self._known = known_sketches(features, threshold, row_N)
        self._sketches = self._known.sketches
        self._rows: list[int] = []
        width = self._sketches.size + 2
        self._other_nm = np.zeros((0, width), np.float32)
        self._expected_U = np.zeros(0, np.int64)
        self._expected_Um = np.zeros((0, width), np.float32)
        self._near_UK = np.zeros((0, 0), bool)  # whether a block of chosen rows holds one that may be near
        self._open_U = np.zeros(0, bool)  # not asked for yet
        self._last = (-1, np.zeros((0, 0), np.float32))

    def expect(self, rows: np.ndarray) -> None:
        """Prepare for rows, ascending, that are likely to be asked for next; the result does not depend on it."""
        if len(rows) < 2:
            return
        if len(rows) * 4 * (self._sketches.size + 2) > MOST_BYTES:
            return
        self._expected_U, self._expected_Um = rows.astype(np.int64), self._known.of(self._features, rows)
        blocks = len(self._rows) // BLOCK
        self._near_UK = np.zeros((len(rows), max(8, 2 * blocks)), bool)
        self._open_U = np.ones(len(rows), bool)
        for block in range(blocks):
            self._compare(block)

    def find(self, row: int) -> int | None:
        """Return the earliest chosen row whose cosine with `row` is at or above the threshold."""
        if not self._rows:
            return None
        sketch_1m, blocks = self._sketch(row)
        whole = len(self._rows) // BLOCK
        ranges = [(block * BLOCK, (block + 1) * BLOCK) for block in blocks]
        if whole * BLOCK < len(self._rows):
            ranges.append((whole * BLOCK, len(self._rows)))
        for start, stop in ranges:
            close_n = (self._other_nm[start:stop] @ sketch_1m[0]) >= self._sketches.bound
            places = (start + np.flatnonzero(close_n)).tolist()
            if places:
                found = self._first_near(row, [self._rows[place] for place in places])
                if found is not None:
                    return found
        return None

    def add(self, row: int) -> None:
        """Count a row as chosen."""
        sketch_1m, _ = self._sketch(row)
        n = len(self._rows)
        if n == len(self._other_nm):
            room = np.empty((max(BLOCK, n), sketch_1m.shape[1]), np.float32)
            self._other_nm = np.concatenate([self._other_nm, room])
        self._other_nm[n] = Sketches.other(sketch_1m)[0]
        self._rows.append(row)
        if len(self._rows) % BLOCK == 0 and len(self._expected_U):
            self._compare(n // BLOCK)

    def _sketch(self, row: int) -> tuple[np.ndarray, list[int]]:
        """Return the sketch of a row [1, m + 2] and the whole blocks of chosen rows that it is to be compared with."""
        whole = len(self._rows) // BLOCK
        place = int(np.searchsorted(self._expected_U, row))
        if place < len(self._expected_U) and self._expected_U[place] == row:
            self._open_U[place] = False
            return self._expected_Um[place : place + 1], np.flatnonzero(self._near_UK[place, :whole]).tolist()
        if self._last[0] != row:
            self._last = row, self._sketches.of(self._features.gather(np.array([row])))
        return self._last[1], list(range(whole))

    def _compare(self, block: int) -> None:
        """Find the expected rows that may be near one of a block of chosen rows."""
        if block >= self._near_UK.shape[1]:
            self._near_UK = np.concatenate([self._near_UK, np.zeros_like(self._near_UK)], axis=1)
        other_mB = self._other_nm[block * BLOCK : (block + 1) * BLOCK].T
        left = np.flatnonzero(self._open_U)
        for start in range(0, len(left), COMPARED_ROWS):
            here = left[start : start + COMPARED_ROWS]
            self._near_UK[here, block] = (self._expected_Um[here] @ other_mB).max(axis=1) >= self._sketches.bound

    def _first_near(self, row: int, others: list[int]) -> int | None:
        for start in range(0, len(others), READ_ROWS):
            part = others[start : start + READ_ROWS]
            unit_BD = self._features.gather(np.array([row, *part])).astype(np.float64)
            norm_B = np.sqrt(np.einsum("bd,bd->b", unit_BD, unit_BD))
            unit_BD /= np.where(norm_B > 0, norm_B, 1.0)[:, None]
            near_B = unit_BD[1:] @ unit_BD[0] >= self._threshold - ROUNDING
            if near_B.any():
                return part[int(near_B.argmax())]
        return None
