"""The best remaining row of every column over lines that are all in memory: sorted once, then walked down.

As ColumnHeads, with no list that is cut and nothing to read again. What the lines leave out is below a floor.

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

    Lines are numbered in ascending order of their rows. Of every row outside, and of the lines' scores that are in no
    list, each is below `floor_C` in its column.
    """

    def __init__(self, line_UT: np.ndarray, normalised: Normalised, floor_C: np.ndarray, threads: int = 1) -> None:
        self._normalised = normalised
        self._line_UT = line_UT
        self._floor_C = floor_C
        self._out = np.zeros(len(line_UT) + 1, bool)  # the last one stands for the end of a list: never taken out
        columns = len(floor_C)
        groups = [np.arange(low, min(low + GROUP, columns)) for low in range(0, columns, GROUP)]
        with ThreadPoolExecutor(max(1, threads)) as pool:
            length_C = np.concatenate(list(pool.map(self._lengths, groups)))
            self._end_C = np.cumsum(length_C + 1) - 1
            self._pointer_C = self._end_C - length_C
            self._minus_z = np.empty(int(self._end_C[-1]) + 1)  # ascending within a list, so that it can be searched
            self._line = np.empty(len(self._minus_z), np.int32 if len(line_UT) < 2**31 else np.int64)
            list(pool.map(self._sort, groups))
        under_C = np.nextafter(floor_C, -np.inf, dtype=floor_C.dtype)
        self._minus_z[self._end_C] = -normalised.values(under_C, slice(None))
        self._line[self._end_C] = len(line_UT)
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
        while True:
            # Of equal z the first free one is the lowest; a lower z can become equal in the subtraction.
            here += int(np.searchsorted(minus_z[here:end], minus_z[here], side="right"))
            if -minus_z[here] - mean < top:
                return lowest
            if here == end:
                raise FloorReached
            line = self._line[here : here + int(np.searchsorted(minus_z[here:end], minus_z[here], side="right"))]
            free = line[~self._out[line]]
            lowest = min(lowest, int(free[0])) if len(free) else lowest

    def _lengths(self, columns: np.ndarray) -> np.ndarray:
        return (self._scores(columns) >= self._floor_C[columns, None]).sum(axis=1)

    def _sort(self, columns: np.ndarray) -> None:
        for column, score_U in zip(columns, self._scores(columns), strict=True):
            line_E = np.flatnonzero(score_U >= self._floor_C[column])
            line_E = line_E[_falling(score_U[line_E])]
            z_E = self._normalised.values(score_U[line_E], column)
            if (np.diff(line_E)[np.diff(z_E) == 0] < 0).any():  # different scores of one z
                order_E = np.lexsort((line_E, -z_E))
                line_E, z_E = line_E[order_E], z_E[order_E]
            start, end = self._pointer_C[column], self._end_C[column]
            np.negative(z_E, out=self._minus_z[start:end])
            self._line[start:end] = line_E

    def _scores(self, columns: np.ndarray) -> np.ndarray:
        return np.ascontiguousarray(self._line_UT[:, self._normalised.column_C[columns]].T)


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
