"""The best remaining row of every column over lines that are all in memory: sorted once, then walked down.

Shape suffixes: U lines, T target columns, C columns in use, E entries of all lists.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import numpy as np

from influray.selectors.normalisers import Normalised

GROUP = 16  # columns copied at a time: as many float32 as a cache line holds
WIDTH = 64  # entries looked at together
FEW = 12  # columns that are moved one by one


class FloorReached(Exception):
    """A row that is not held may be the best, or tied with it."""


class HeldHeads:
    """For every column in use the best of the lines that are not taken out yet. 12 bytes an entry.

    Lines are numbered in ascending order of their rows. A column lists those with a score above `floor_C`, and the
    first `last_C` lines where they equal it; all rows that are in no list stand behind these in the column's order.
    Of them those that do not equal the floor have scores up to `under_C`.
    """

    def __init__(
        self,
        line_UT: np.ndarray,
        normalised: Normalised,
        floor_C: np.ndarray,
        last_C: np.ndarray,
        under_C: np.ndarray,
        threads: int = 1,
    ) -> None:
        self._line_UT, self._normalised, self._floor_C, self._last_C = line_UT, normalised, floor_C, last_C
        self._out = np.zeros(len(line_UT) + 1, bool)  # the last one stands for the end of a list: never taken out
        # Bounds of the z of what is in no list: `rest` of all, `below` of what may tie with a listed line and win.
        self._rest_C, self._below_C = (normalised.values(score_C, slice(None)) for score_C in (floor_C, under_C))
        columns = len(floor_C)
        groups = [np.arange(low, min(low + GROUP, columns)) for low in range(0, columns, GROUP)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            lists = [one for group in pool.map(self._sorted, groups) for one in group]
        self._end_C = np.cumsum([len(line_E) for line_E, _ in lists]) - 1
        self._pointer_C = np.append(0, self._end_C[:-1] + 1)
        self._line = np.concatenate([line_E for line_E, _ in lists])
        self._minus_z = np.concatenate([minus_z_E for _, minus_z_E in lists])  # ascending within a list: to be searched
        self._head_C = -self._minus_z[self._pointer_C]
        self._line_C = self._line[self._pointer_C]

    def best(self, mean_C: np.ndarray) -> tuple[int, int, float]:
        """Return (line, column, utility) of the largest z - mean; ties go to the lowest line, then the lowest column.

        Raises:
            FloorReached: it may be a row that is not held.
        """
        utility_C = self._head_C - mean_C
        column = int(utility_C.argmax())
        top = utility_C[column]
        equal_C = utility_C == top
        if np.count_nonzero(equal_C) == 1:
            return self._lowest_tied(column, float(mean_C[column]), float(top)), column, float(top)
        tied = equal_C.nonzero()[0].tolist()
        return *min((self._lowest_tied(column, float(mean_C[column]), top), column) for column in tied), float(top)

    def remove(self, lines: np.ndarray) -> None:
        """Take lines out of every column; none of them may be out already."""
        self._out[lines] = True
        moved_C = (self._line_C == lines[0] if len(lines) == 1 else self._out[self._line_C]).nonzero()[0]
        if len(moved_C) <= FEW:
            for column in moved_C.tolist():
                here = int(self._pointer_C[column]) + 1
                while self._out[self._line[here]]:
                    # The end of a list is free, so that the entries after it are never reached.
                    taken = self._out[self._line[here + 1 : here + WIDTH]]
                    step = int(taken.argmin())
                    here += 1 + (len(taken) if taken[step] else step)
                self._point(column, here)
        else:
            self._move(moved_C)

    def _move(self, moved_C: np.ndarray) -> None:
        here_C = self._pointer_C[moved_C] + 1
        stale = self._out[self._line[here_C]].nonzero()[0]
        width = 8
        while len(stale):
            ahead = np.minimum(here_C[stale, None] + np.arange(1, width + 1), self._end_C[moved_C[stale], None])
            taken = self._out[self._line[ahead]]
            step = taken.argmin(axis=1)
            beyond = taken.all(axis=1)
            step[beyond] = width - 1
            here_C[stale] = ahead[np.arange(len(stale)), step]
            stale = stale[beyond]
            width *= 4
        self._point(moved_C, here_C)

    def _point(self, columns: int | np.ndarray, pointer: int | np.ndarray) -> None:
        self._pointer_C[columns] = pointer
        self._head_C[columns] = -self._minus_z[pointer]
        self._line_C[columns] = self._line[pointer]

    def _lowest_tied(self, column: int, mean: float, top: float) -> int:
        """Return the lowest free line of a column with utility `top`; its head has that."""
        here, end = int(self._pointer_C[column]), int(self._end_C[column])
        if here == end:
            raise FloorReached
        lowest, minus_z = int(self._line_C[column]), self._minus_z
        if -minus_z[here + 1] - mean < top:
            return lowest
        listed = True  # whether a line of the z looked at is free
        while True:
            # Of equal z the first free one is the lowest; a lower z can become equal in the subtraction.
            z = minus_z[here]
            here += int(np.searchsorted(minus_z[here:end], z, side="right"))
            if here == end:
                # What is in no list stands behind a line with the score of the floor, as long as that is free.
                rest = self._below_C[column] if listed and -z == self._rest_C[column] else self._rest_C[column]
                if rest - mean >= top:
                    raise FloorReached
                return lowest
            if -minus_z[here] - mean < top:
                return lowest
            line = self._line[here : here + int(np.searchsorted(minus_z[here:end], minus_z[here], side="right"))]
            free = line[~self._out[line]]
            listed = len(free) > 0
            lowest = min(lowest, int(free[0])) if listed else lowest

    def _sorted(self, columns: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """Return the lines of each column's list, best first, with minus their z; one more for what is in no list."""
        found = []
        score_gU = np.ascontiguousarray(self._line_UT[:, self._normalised.column_C[columns]].T)
        for column, score_U in zip(columns, score_gU, strict=True):
            line_E = np.flatnonzero(score_U >= self._floor_C[column])
            score_E = score_U[line_E]
            if score_E.min(initial=np.inf) == self._floor_C[column]:
                line_E = line_E[(score_E > self._floor_C[column]) | (line_E < self._last_C[column])]
            line_E = line_E[_falling(score_U[line_E])]
            score_E = score_U[line_E]
            z_E = self._normalised.values(score_E, column)
            if (np.diff(line_E)[np.diff(z_E) == 0] < 0).any():  # different scores of one z
                order_E = np.lexsort((line_E, -z_E))
                line_E, z_E = line_E[order_E], z_E[order_E]
            if ((z_E == self._rest_C[column]) & (score_E > self._floor_C[column])).any():
                self._below_C[column] = self._rest_C[column]
            end = np.array([len(self._line_UT)])
            kind = np.int32 if len(self._line_UT) < 2**31 else np.int64
            found.append((np.append(line_E, end).astype(kind), -np.append(z_E, self._rest_C[column])))
        return found


def _falling(score_E: np.ndarray) -> np.ndarray:
    """Return the order by falling score that leaves equals as they stand."""
    if score_E.dtype != np.float32 or len(score_E) >= 2**32:
        return np.argsort(-score_E, kind="stable")
    # Bits that ascend as the score falls, and the place behind them: sorting numbers is several times faster.
    bits_E = (score_E + np.float32(0)).view(np.int32)  # -0 becomes 0
    bits_E = ~(bits_E ^ ((bits_E >> 31) & 0x7FFFFFFF))
    key_E = (bits_E.astype(np.int64) << 32) | np.arange(len(score_E))
    key_E.sort()
    return key_E & 0xFFFFFFFF
