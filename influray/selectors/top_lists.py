"""The highest scores of every column, in one pass over the blocks and in memory of columns x depth.

A sample guesses the score from which a column's list begins; a list that grows too long is cut and the guess
raised. The guess decides how much is kept, never what is right: every list says what it is complete down to.

Shape suffixes: N rows, T target columns, C columns asked for, B rows of one block, E entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource

SAMPLE_ROWS = 4096
MIN_RANK = 8  # in the sample: fewer, and the length of the list is a matter of luck
ROOM = 3  # times columns x depth: entries held before lists are cut


@dataclass(frozen=True)
class TopList:
    """The listed rows of one column, by ascending position (the ordinal of a row in the matrix).

    Every free row outside the list has a score <= `limit`; one that equals it stands after all listed rows that
    do. -inf: nothing is outside.
    """

    score_E: np.ndarray
    position_E: np.ndarray
    limit: np.floating


def top_lists(source: AttributionSource, column_C: np.ndarray, depth: int, chosen_N: np.ndarray) -> list[TopList]:
    """Return for each column about `depth` of its highest rows that are not chosen, as far as there are any.

    The columns must be finite. A list may be shorter than asked for where the sample misled, and up to `ROOM`
    times longer; it is empty only where no row is free.
    """
    gatherer = _Gatherer(_first_limits(source, column_C, depth, chosen_N), depth)
    width = source.shape[1]
    place_T = np.full(width, -1)
    place_T[column_C] = np.arange(len(column_C))
    offset = 0
    for _, block_BT in source.blocks():
        entry_T = np.full(width, np.nan, block_BT.dtype)  # no score is >= NaN
        entry_T[column_C] = gatherer.entry_C
        hit = np.flatnonzero(block_BT >= entry_T)
        line, column = np.divmod(hit, width)
        line += offset
        free = ~chosen_N[line]
        gatherer.add(block_BT.reshape(-1)[hit[free]], line[free], place_T[column[free]])
        offset += len(block_BT)
    return gatherer.lists()


class _Gatherer:
    """Entries of all columns, in ascending position; `entry_C` is the lowest score that is still let in."""

    def __init__(self, limit_C: np.ndarray, depth: int) -> None:
        self.entry_C = limit_C.copy()
        self._limit_C = limit_C
        self._depth = depth
        self._room = ROOM * depth * len(limit_C)
        self._entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, score_E: np.ndarray, position_E: np.ndarray, place_E: np.ndarray) -> None:
        self._entries.append((score_E, position_E, place_E))
        self._held += len(score_E)
        if self._held > self._room:
            self._cut()

    def lists(self) -> list[TopList]:
        lists = self._by_column()
        return [TopList(score_E, position_E, self._limit_C[c]) for c, (score_E, position_E) in enumerate(lists)]

    def _by_column(self) -> list[tuple[np.ndarray, np.ndarray]]:
        columns = len(self._limit_C)
        empty = (self._limit_C[:0], np.zeros(0, np.int64), np.zeros(0, np.int64))
        score_E, position_E, place_E = (np.concatenate(parts) for parts in zip(empty, *self._entries, strict=True))
        # 16-bit keys are sorted by radix, several times faster than wider ones.
        order_E = np.argsort(place_E.astype(np.uint16) if columns < 2**16 else place_E, kind="stable")
        cuts = np.cumsum(np.bincount(place_E, minlength=columns))[:-1]
        return list(zip(np.split(score_E[order_E], cuts), np.split(position_E[order_E], cuts), strict=True))

    def _cut(self) -> None:
        """Keep the `depth` best of every column, the lower row of equals, and let in only what beats the last."""
        kept = []
        for c, (score_E, position_E) in enumerate(self._by_column()):
            best = np.argsort(-score_E, kind="stable")[: self._depth]
            if len(score_E) > self._depth:
                self._limit_C[c] = score_E[best[-1]]
                # Rows come in ascending order, so what only equals the last one kept would stand behind it.
                self.entry_C[c] = np.nextafter(self._limit_C[c], np.inf, dtype=self._limit_C.dtype)
            best.sort()
            kept.append((score_E[best], position_E[best], np.full(len(best), c)))
        self._entries = kept
        self._held = sum(len(score_E) for score_E, _, _ in kept)


def _first_limits(source: AttributionSource, column_C: np.ndarray, depth: int, chosen_N: np.ndarray) -> np.ndarray:
    """Return per column the score that about `depth` free rows reach, from evenly spaced ones; -inf = take all."""
    free = np.flatnonzero(~chosen_N)
    spaced = np.linspace(0, len(free) - 1, min(len(free), SAMPLE_ROWS)).astype(np.int64)
    sample_SC = source.gather(source.rows[free[spaced]])[:, column_C]
    if depth >= len(free):
        return np.full(len(column_C), -np.inf, sample_SC.dtype)
    rank = min(len(spaced), max(MIN_RANK, math.ceil(depth * len(spaced) / len(free))))
    return np.partition(sample_SC, len(spaced) - rank, axis=0)[len(spaced) - rank].copy()
