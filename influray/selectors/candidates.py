"""The rows that a balanced selection can possibly touch, found by a sample, gathered in one pass and kept in memory.

The selection is first carried out on a sample, in proportion. How far down it reaches in each column tells which rows
the real one will come near: those that reach that score in some column, little more than it will choose. One pass
gathers them with their whole lines, and the selection walks over them alone. The sample decides how many rows that
are, never what is chosen: every row outside is below the bar in every column, and a selection that arrives at a bar
gathers anew.

Shape suffixes: N rows, T target columns, C columns in use, S rows of the sample, U candidates.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.heads import ColumnHeads
from influray.selectors.held_heads import FloorReached, HeldHeads
from influray.selectors.normalisers import Normalised
from influray.store.ranges import Blocks, map_ranges

SAMPLE_ROWS = 8192
MOST_SAMPLE_ROWS = 65536
SAMPLE_PICKS = 1000  # that a sample should be large enough for: their means have to be near the real ones
RUN_ROWS = 8  # of the sample that are neighbours: a disk reads them as fast as one
SPARE = 1.5  # times the rows that are still to be chosen
MARGIN = 2.0  # standard errors of a mean over the picks of the sample
MAX_HELD = 2**30  # bytes of candidates; a selection of more is made in several passes
BISECTIONS = 48


class CandidateHeads:
    """As ColumnHeads, over candidates: the best remaining row of the matrix, and its line.

    `iterate` says whether means will be subtracted that follow what was chosen; it helps the guess alone.
    `on_gathered` is told the candidates, positions in ascending order.
    """

    def __init__(
        self,
        source: AttributionSource,
        normalised: Normalised,
        iterate: bool = True,
        on_gathered: Callable[[np.ndarray], None] = lambda positions: None,
    ) -> None:
        self._on_gathered = on_gathered
        self._source = source
        self._normalised = normalised
        self._iterate = iterate
        self._threads = getattr(getattr(source, "mapper", None), "threads", 1)
        self._out_N = np.zeros(source.shape[0], bool)
        self.left = source.shape[0]  # rows that are still in
        self._heads: ColumnHeads | HeldHeads | None = None
        self._position_U: np.ndarray | None = None  # the candidates, ascending; None = all rows are
        self._line_UT = np.zeros((0, source.shape[1]))
        self._place_N = np.full(source.shape[0], -1, np.int32)  # of a row among the candidates
        self._moved = False  # since they were gathered

    def best(self, mean_C: np.ndarray, done: int, wanted: int) -> tuple[int, int, float]:
        """Return (position, column, utility) of the largest z - mean over the rows not taken out.

        Ties go to the lowest position, then to the lowest column. `done` rows make the mean, and about `wanted` more
        will be asked for.
        """
        while True:
            if self._heads is None:
                self._gather(mean_C, done, wanted)
                continue
            try:
                place, column, utility = self._heads.best(mean_C)
            except FloorReached:
                self._heads = None
                continue
            return place if self._position_U is None else int(self._position_U[place]), column, utility

    def remove(self, positions: np.ndarray) -> None:
        """Take rows out of every column; none of them may be out already."""
        if not len(positions):
            return
        self._moved = True
        self._out_N[positions] = True
        self.left -= len(positions)
        if self._heads is not None and self._position_U is not None:
            place = self._place_N[positions]
            positions = place[place >= 0]
        if self._heads is not None and len(positions):
            self._heads.remove(positions)

    def line(self, position: int) -> np.ndarray:
        """Return z of a row, [C] float64."""
        place = int(self._place_N[position])
        if place >= 0:
            return self._normalised.lines(self._line_UT[place : place + 1])[0]
        return self._normalised.lines(self._source.gather(self._source.rows[position : position + 1]))[0]

    def _gather(self, mean_C: np.ndarray, done: int, wanted: int) -> None:
        """Gather candidates for what is still wanted; where that helps nothing, take all rows for them."""
        rows, width = self._source.shape
        first, stuck = self._position_U is None, not self._moved
        if self._position_U is not None:
            self._place_N[self._position_U] = -1
        self._position_U, self._line_UT, self._moved = None, self._line_UT[:0], False
        most = MAX_HELD // (8 * width)
        want = min(math.ceil(SPARE * wanted), most)
        if want >= 1 and 2 * want < self.left and rows > SAMPLE_ROWS and (first or not stuck):
            sample_ST = self._sample(SAMPLE_PICKS * self.left // want)
            for _ in range(3):
                bar_C = self._bars(sample_ST, mean_C, done, want)
                if self._collect(bar_C, min(2 * most, 4 * want)):
                    return
                want = max(1, want // 2)
        depth = first_depth(wanted, len(self._normalised.column_C))
        self._heads = ColumnHeads(self._source, self._normalised, depth, out_N=self._out_N)

    def _sample(self, rows: int) -> np.ndarray:
        free = np.flatnonzero(~self._out_N)
        rows = min(MOST_SAMPLE_ROWS, max(SAMPLE_ROWS, min(rows, len(free) // 16)))
        runs = np.linspace(0, max(0, len(free) - RUN_ROWS), max(1, rows // RUN_ROWS)).astype(np.int64)
        place = np.unique(np.minimum(runs[:, None] + np.arange(RUN_ROWS), len(free) - 1))
        return self._source.gather(self._source.rows[free[place]])

    def _bars(self, sample_ST: np.ndarray, mean_C: np.ndarray, done: int, want: int) -> np.ndarray:
        """Return per column the score that a selection of `want` more rows goes down to, going by the sample."""
        share = len(sample_ST) / self.left
        expected = want * share
        steps = min(len(sample_ST) - 1, math.ceil(expected + 2 * math.sqrt(expected)))
        sample_SC = sample_ST[:, self._normalised.column_C]
        rank = len(sample_ST) - steps - 1  # no column can be asked for more
        heads = HeldHeads(sample_ST, self._normalised, np.partition(sample_SC, rank, axis=0)[rank], self._threads)
        count = before = done * share
        sum_C, bar_C = mean_C * count, np.full(len(mean_C), np.inf)
        square_C = np.zeros_like(sum_C)
        for _ in range(steps):
            try:
                position, _, utility = heads.best(mean_C)
            except FloorReached:  # by ties at the floor; what was seen so far will do
                break
            np.minimum(bar_C, mean_C + utility, out=bar_C)
            heads.remove(np.array([position]))
            if self._iterate:
                z_C = self._normalised.lines(sample_ST[position : position + 1])[0]
                sum_C += z_C
                square_C += z_C * z_C
                count += 1
                mean_C = sum_C / count
        if count > before:
            bar_C -= MARGIN * np.sqrt(square_C) / count
        # In scores, so that a pass has only to compare. Any value is right: bisection wants no inverse.
        low_C, high_C = sample_SC.min(axis=0).astype(np.float64), sample_SC.max(axis=0).astype(np.float64)
        for _ in range(BISECTIONS):
            middle_C = low_C + (high_C - low_C) / 2
            under_C = self._normalised.values(middle_C, slice(None)) < bar_C
            low_C, high_C = np.where(under_C, middle_C, low_C), np.where(under_C, high_C, middle_C)
        return high_C.astype(sample_ST.dtype)

    def _collect(self, bar_C: np.ndarray, most: int) -> bool:
        """Gather the free rows that reach the bar in some column; False where they are more than `most` or none."""
        width = self._source.shape[1]
        bar_T = np.full(width, np.nan, bar_C.dtype)  # no score is >= NaN
        bar_T[self._normalised.column_C] = bar_C
        # Of these only what is written to takes memory.
        position_U, line_UT, held = np.empty(most, np.int64), np.empty((most, width), bar_C.dtype), 0
        for position, line in map_ranges(self._source, reaching, bar_T, by_row=(self._out_N,)):
            if held + len(position) > most:
                return False
            position_U[held : held + len(position)] = position
            line_UT[held : held + len(position)] = line
            held += len(position)
        if not held:
            return False
        self._position_U, self._line_UT = position_U[:held], line_UT[:held]
        self._place_N[self._position_U] = np.arange(held)
        self._on_gathered(self._position_U)
        self._heads = HeldHeads(self._line_UT, self._normalised, bar_C, self._threads)
        return True


def reaching(blocks: Blocks, start: int, out_N: np.ndarray, bar_T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (position_U, line_UT) of the rows of a range that are not out and reach the bar in some column."""
    places, lines, offset = [np.zeros(0, np.int64)], [np.zeros((0, len(bar_T)), bar_T.dtype)], 0
    for _, block_BT in blocks:
        hit = np.flatnonzero((block_BT >= bar_T).any(axis=1) & ~out_N[offset : offset + len(block_BT)])
        places.append(hit + (start + offset))
        lines.append(block_BT[hit])
        offset += len(block_BT)
    return np.concatenate(places), np.concatenate(lines)


def first_depth(budget: int, columns: int) -> int:
    """Return how long the columns' lists start: several times a column's fair share of the picks.

    Correlated columns walk over each other's picks, so a floor grows with the budget itself.
    """
    return max(8 * budget // columns, budget // 32)
