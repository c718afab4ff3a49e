"""The best remaining row of every column, from lists of each column's highest rows that refill exactly.

max_i max_j (Z_ij - m_j) = max_j (max_i Z_ij - m_j): a penalty per column does not change a column's order, so a
selection needs the heads of sorted columns and never the whole of the matrix. Lists are short; a column that
reaches the end of its own is listed anew over the rows that are left.

Shape suffixes: N rows, C columns in use, B rows of one block, E entries of lists.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.normalisers import Normalised
from influray.selectors.top_lists import TopList, top_lists
from influray.store.ranges import Blocks, map_ranges

MIN_DEPTH = 64
MAX_ENTRIES = 2**22  # over all lists, about 32 bytes each: deeper lists are read in several passes instead
GROWTH = 4


@dataclass
class _List:
    """A column's highest rows by falling z, then ascending position.

    `rest` bounds the z of every free row outside; `below` of those whose score is strictly under the list's
    limit, and where `settled` it has been looked up.
    """

    z_E: np.ndarray
    position_E: np.ndarray
    limit: np.floating
    rest: float
    below: float
    settled: bool = False


class ColumnHeads:
    """For every column in use its best row that is not taken out yet; `best` and `remove` walk down.

    Rows are positions 0..N-1 in the order of the source's blocks. `depth`, the first length of the lists, decides
    the number of passes over the source and no result. Memory: columns x depth, except where more scores than that
    are distinct before a mean is subtracted and equal after it, by rounding. Rows of `out_N` are out from the start.
    """

    def __init__(
        self, source: AttributionSource, normalised: Normalised, depth: int, out_N: np.ndarray | None = None
    ) -> None:
        self._source = source
        self._normalised = normalised
        self._rows = source.shape[0]
        self._out = np.zeros(self._rows + 1, bool)  # the last one stands for the end of a list: never chosen
        if out_N is not None:
            self._out[: self._rows] = out_N
        self.left = self._rows - int(self._out.sum())  # rows that are still in
        columns = len(normalised.column_C)
        self._cap = max(MIN_DEPTH, MAX_ENTRIES // columns)
        self._depth_C = np.full(columns, min(self._cap, max(MIN_DEPTH, depth)))
        self._lists = self._listed(np.arange(columns), int(self._depth_C[0]))
        self._lay_out()

    def best(self, mean_C: np.ndarray) -> tuple[int, int, float]:
        """Return (position, column, utility) of the largest z - mean over the rows not chosen.

        Ties go to the lowest position, then to the lowest column.
        """
        while True:
            utility_C = self._head_C - mean_C
            top = utility_C.max()
            found = (self._rows, 0)
            for column in (utility_C == top).nonzero()[0].tolist():
                # A head is the lowest tied row of its column unless a lower z becomes equal in the subtraction.
                if self._next_C[column] - mean_C[column] < top:
                    position = int(self._position_C[column])
                else:
                    position = self._lowest_tied(column, float(mean_C[column]), float(top))
                    if position < 0:
                        break  # the lists have changed: look again
                found = min(found, (position, column))
            else:
                return *found, float(top)

    def remove(self, positions: np.ndarray) -> None:
        """Take rows out of every column; none of them may be out already."""
        if not len(positions):
            return
        self._out[positions] = True
        self.left -= len(positions)
        if len(positions) == 1:
            moved_C = (self._position_C == positions[0]).nonzero()[0]
        else:
            moved_C = self._out[self._position_C].nonzero()[0]
        pointer = self._pointer_C[moved_C] + 1
        self._pointer_C[moved_C] = pointer
        stale_C = moved_C
        chosen = self._out[self._flat_position[pointer]]
        # Correlated columns walk over each other's picks: look further ahead each time, not one by one.
        width = 8
        while chosen.any():
            stale_C = stale_C[chosen]
            ahead = self._pointer_C[stale_C, None] + np.arange(1, width + 1)
            ahead = np.minimum(ahead, self._end_C[stale_C, None])  # the end counts as free
            chosen_ahead = self._out[self._flat_position[ahead]]
            chosen = chosen_ahead.all(axis=1)
            step = np.where(chosen, width - 1, chosen_ahead.argmin(axis=1))
            self._pointer_C[stale_C] = ahead[np.arange(len(stale_C)), step]
            width *= 8
        self._point(moved_C)

    def _lowest_tied(self, column: int, mean: float, top: float) -> int:
        """Return the lowest free row of a column with utility `top`, or -1 once its list reaches further."""
        here, end = int(self._pointer_C[column]), int(self._end_C[column])
        listed = self._lists[column]
        if here == end:
            self._refill(column)
            return -1
        tied = here + int(np.searchsorted(mean - self._flat_z[here:end], -top, side="right"))
        if tied == end and listed.below - mean >= top:
            if listed.settled:
                self._replace(np.array([column]), GROWTH * int(self._depth_C[column]))
            else:
                self._settle(column)
            return -1
        position_E = self._flat_position[here:tied]
        return int(position_E[~self._out[position_E]].min())

    def _refill(self, column: int) -> None:
        """List anew a column that is at its end, and in the same pass all that are more than half used up."""
        unfinished_C = np.array([listed.rest > -np.inf for listed in self._lists])
        low_C = unfinished_C & (2 * (self._end_C - self._pointer_C) < self._depth_C)
        low_C[column] = True
        self._replace(np.flatnonzero(low_C), min(self._cap, GROWTH * int(self._depth_C[low_C].max())))

    def _replace(self, columns: np.ndarray, depth: int) -> None:
        self._depth_C[columns] = depth
        for column, listed in zip(columns, self._listed(columns, depth), strict=True):
            self._lists[column] = listed
        self._lay_out()

    def _listed(self, columns: np.ndarray, depth: int) -> list[_List]:
        found = top_lists(self._source, self._normalised.column_C[columns], depth, self._out[: self._rows])
        return [self._sorted(int(column), top) for column, top in zip(columns, found, strict=True)]

    def _sorted(self, column: int, top: TopList) -> _List:
        z_E = self._normalised.values(top.score_E, column)
        order_E = np.argsort(-z_E, kind="stable")
        under = np.nextafter(top.limit, -np.inf, dtype=top.limit.dtype)
        rest, below = self._normalised.values(np.array([top.limit, under]), column)
        # Different scores of one z, and the limit lies between them: a row outside may stand before one of the list.
        torn = bool(((z_E == rest) & (top.score_E > top.limit)).any())
        below = rest if torn else below
        return _List(z_E[order_E], top.position_E[order_E], top.limit, float(rest), float(below), settled=torn)

    def _settle(self, column: int) -> None:
        """Look up the highest free score under the limit of a list: one pass over one column."""
        listed = self._lists[column]
        target = int(self._normalised.column_C[column])
        parts = map_ranges(self._source, highest_under, target, listed.limit, by_row=(self._out[: self._rows],))
        listed.below = float(self._normalised.values(np.array(max(parts)), column))
        listed.settled = True
        self._lay_out()

    def _lay_out(self) -> None:
        """Lay the free rows of all lists end to end, each list closed by one entry for what is outside it."""
        zs, positions, nexts, lengths = [], [], [], []
        for listed in self._lists:
            free_E = ~self._out[listed.position_E]
            listed.z_E, listed.position_E = listed.z_E[free_E], listed.position_E[free_E]
            length = len(listed.z_E)
            step_E = np.flatnonzero(np.diff(listed.z_E)) + 1  # where z falls
            run_E = np.diff(step_E, prepend=0, append=length)
            next_E = np.append(listed.z_E[step_E], listed.below)  # the z after each run of equal ones
            zs += [listed.z_E, [listed.rest]]
            positions += [listed.position_E, [self._rows]]
            nexts += [np.repeat(next_E, run_E), [np.inf]]  # nothing is settled at the end of a list
            lengths.append(length)
        self._flat_z, self._flat_next = np.concatenate(zs), np.concatenate(nexts)
        self._flat_position = np.concatenate(positions)
        self._end_C = np.cumsum(np.array(lengths) + 1) - 1
        self._pointer_C = self._end_C - lengths
        self._head_C, self._next_C = np.empty(len(lengths)), np.empty(len(lengths))
        self._position_C = np.empty(len(lengths), np.int64)
        self._point(np.arange(len(lengths)))

    def _point(self, columns: np.ndarray) -> None:
        pointer = self._pointer_C[columns]
        self._head_C[columns] = self._flat_z[pointer]
        self._next_C[columns] = self._flat_next[pointer]
        self._position_C[columns] = self._flat_position[pointer]


def highest_under(blocks: Blocks, start: int, out_N: np.ndarray, target: int, limit: np.floating) -> float:
    """Return the highest score below `limit` of a column, over the rows of a range that are not out; -inf = none."""
    highest, offset = -np.inf, 0
    for _, block_BT in blocks:
        score_B = block_BT[:, target]
        under_B = ~out_N[offset : offset + len(score_B)] & (score_B < limit)
        highest = max(highest, float(score_B[under_B].max(initial=-np.inf)))
        offset += len(score_B)
    return highest
