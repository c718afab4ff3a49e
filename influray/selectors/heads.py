"""The best remaining row of every column, over the rows that a selection can possibly touch.

max_i max_j (Z_ij - m_j) = max_j (max_i Z_ij - m_j): a penalty per column does not change a column's order, so a
selection needs the heads of sorted columns and never the whole of the matrix. How far down it will go in each column
is guessed from a sample; the rows above that are gathered in one pass, little more than it will choose, and it walks
over them alone. What is chosen does not depend on the guess: a selection that comes to the floor of a column gathers
anew.

Shape suffixes: N rows, T target columns, C columns in use, S rows of the sample, U candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.candidates import Floor, floor_at, gather, sample
from influray.selectors.held_heads import FloorReached, HeldHeads
from influray.selectors.normalisers import Normalised

SAMPLE_ROWS = 8192
MOST_SAMPLE_ROWS = 65536
SAMPLE_PICKS = 1000  # that a sample should be large enough for: their means have to be near the real ones
MIN_RANK = 8  # in the sample: fewer, and what a column holds is a matter of luck
SPARE = 1.5  # times the rows that are still to be chosen
GROWTH = 4  # of the spare where less than half of them came from what was gathered
MARGIN = 2.0  # standard errors of a mean over the picks of the sample
MAX_HELD = 2**30  # bytes of candidates; a selection of more is made in several passes
BISECTIONS = 48


class Heads:
    """For every column in use its best row that is not taken out yet; `best` and `remove` walk down.

    Rows are positions 0..N-1 in the order of the source's blocks. `picks` says what will be subtracted, which helps
    the guess alone: "balance" the means of what was chosen, "height" nothing, "turns" all but one column in turn.
    `on_gathered` is told the candidates, positions in ascending order.
    """

    def __init__(
        self,
        source: AttributionSource,
        normalised: Normalised,
        picks: Literal["balance", "height", "turns"],
        on_gathered: Callable[[np.ndarray], None] = lambda positions: None,
    ) -> None:
        self._source, self._normalised, self._picks, self._on_gathered = source, normalised, picks, on_gathered
        self._threads = getattr(getattr(source, "mapper", None), "threads", 1)
        self._out_N = np.zeros(source.shape[0], bool)
        self.left = source.shape[0]  # rows that are still in
        self._held: HeldHeads | None = None
        self._position_U, self._line_UT = np.zeros(0, np.int64), np.zeros((0, source.shape[1]))
        self._place_N = np.full(source.shape[0], -1, np.int32)  # of a row among the candidates
        self._spare = SPARE
        self._gathered: tuple[int, int] | None = None  # (rows that were left then, rows that were wanted)

    def best(self, mean_C: np.ndarray, done: int, wanted: int) -> tuple[int, int, float]:
        """Return (position, column, utility) of the largest z - mean over the rows not taken out.

        Ties go to the lowest position, then to the lowest column. `done` rows make the mean, and about `wanted` more
        will be asked for.
        """
        while True:
            if self._held is None:
                self._held = self._gather(mean_C, done, wanted)
            try:
                place, column, utility = self._held.best(mean_C)
            except FloorReached:
                self._held = None
            else:
                return int(self._position_U[place]), column, utility

    def remove(self, positions: np.ndarray) -> None:
        """Take rows out of every column; none of them may be out already."""
        if not len(positions):
            return
        self._out_N[positions] = True
        self.left -= len(positions)
        place = self._place_N[positions]
        place = place[place >= 0]
        if self._held is not None and len(place):
            self._held.remove(place)

    def line(self, position: int) -> np.ndarray:
        """Return z of a row, [C] float64."""
        place = int(self._place_N[position])
        if place >= 0:
            return self._normalised.lines(self._line_UT[place : place + 1])[0]
        return self._normalised.lines(self._source.gather(self._source.rows[position : position + 1]))[0]

    def _gather(self, mean_C: np.ndarray, done: int, wanted: int) -> HeldHeads:
        """Gather candidates for what is still wanted; where that is nearly all, or a sample misleads, take all rows."""
        rows, width = self._source.shape
        most, column_C = MAX_HELD // (8 * width), self._normalised.column_C
        if self._gathered is not None:
            taken, hoped = self._gathered[0] - self.left, self._gathered[1]
            self._spare *= GROWTH if 2 * taken < hoped else 1
            most = most if taken else self.left
            self._place_N[self._position_U], self._line_UT = -1, self._line_UT[:0]
        self._gathered = self.left, wanted
        dtype = self._source.gather(self._source.rows[:1]).dtype
        whole = (-np.inf, dtype), (rows, np.int64), (False, bool)
        floor = everything = Floor(*(np.full(len(column_C), value, kind) for value, kind in whole))
        want, found = min(math.ceil(self._spare * wanted), most), None
        while found is None and 1 <= want < self.left and rows > SAMPLE_ROWS:
            size = min(MOST_SAMPLE_ROWS, max(SAMPLE_ROWS, min(SAMPLE_PICKS * self.left // want, self.left // 16)))
            position_S, line_ST = sample(self._source, self._out_N, size)
            floor = self._guess(position_S, line_ST, mean_C, done, want)
            found = gather(self._source, column_C, floor, self._out_N, min(2 * most, self.left))
            want //= 2
        if found is None:
            floor = everything
            found = gather(self._source, column_C, floor, self._out_N, self.left)
            assert found is not None, "there are no more rows than are left"
        self._position_U, self._line_UT, under_C = found
        self._place_N[self._position_U] = np.arange(len(self._position_U))
        self._on_gathered(self._position_U)
        last_C = np.searchsorted(self._position_U, floor.last_C, side="right")
        return HeldHeads(self._line_UT, self._normalised, floor.score_C, last_C, under_C, self._threads)

    def _guess(self, position_S: np.ndarray, line_ST: np.ndarray, mean_C: np.ndarray, done: int, want: int) -> Floor:
        """Return how far down a selection of `want` more rows goes in each column, going by the sample."""
        share, score_SC = len(line_ST) / self.left, line_ST[:, self._normalised.column_C]
        expected = want * share
        steps = min(len(line_ST) - 1, math.ceil(expected + 2 * math.sqrt(expected)))
        rank = steps + 1  # no column can be asked for more
        if self._picks == "turns":
            rank = min(max(MIN_RANK, math.ceil(expected / len(mean_C))), len(line_ST))
        lowest = floor_at(score_SC, position_S, rank)
        if self._picks == "turns" or 2 * want >= self.left:
            return lowest
        last_C = np.searchsorted(position_S, lowest.last_C, side="right")
        under_C = np.where(score_SC < lowest.score_C, score_SC, -np.inf).max(axis=0)
        heads = HeldHeads(line_ST, self._normalised, lowest.score_C, last_C, under_C, self._threads)
        count = before = done * share
        sum_C, bar_C = mean_C * count, np.full(len(mean_C), np.inf)
        square_C = np.zeros_like(sum_C)
        for _ in range(steps):
            try:
                place, _, utility = heads.best(mean_C)
            except FloorReached:  # by ties at the floor
                return lowest
            np.minimum(bar_C, mean_C + utility, out=bar_C)
            heads.remove(np.array([place]))
            if self._picks == "balance":
                z_C = self._normalised.lines(line_ST[place : place + 1])[0]
                sum_C += z_C
                square_C += z_C * z_C
                count += 1
                mean_C = sum_C / count
        if count > before:
            bar_C -= MARGIN * np.sqrt(square_C) / count
        # In scores, so that a pass has only to compare. Any value is right: bisection wants no inverse.
        low_C, high_C = score_SC.min(axis=0).astype(np.float64), score_SC.max(axis=0).astype(np.float64)
        for _ in range(BISECTIONS):
            middle_C = low_C + (high_C - low_C) / 2
            under_C = self._normalised.values(middle_C, slice(None)) < bar_C
            low_C, high_C = np.where(under_C, middle_C, low_C), np.where(under_C, high_C, middle_C)
        high_C = high_C.astype(line_ST.dtype)
        above_C = high_C > lowest.score_C
        score_C = np.where(above_C, high_C, lowest.score_C)
        last_C = np.where(above_C, self._source.shape[0], lowest.last_C)
        return Floor(score_C, last_C, (score_SC == score_C).sum(axis=0) > 1)
