"""The highest scores of every column, in one pass over ranges of rows and in memory of columns x depth.

A sample guesses the score from which a column's list begins; a list that grows too long is cut and the guess
raised. The guess decides how much is kept, never what is right: every list says what it is complete down to, and so
lists of ranges can be merged: together they are complete down to the highest of their ends.

Shape suffixes: N rows, T target columns, C columns asked for, B rows of one block, E entries.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource
from influray.store.ranges import Blocks, map_ranges

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
    limit_C = _first_limits(source, column_C, depth, chosen_N)
    merged = _Gatherer(limit_C, depth)
    for part in map_ranges(source, gather_range, column_C, limit_C, depth, by_row=(chosen_N,)):
        merged.absorb(*part)
    return merged.lists()


def gather_range(
    blocks: Blocks, start: int, chosen_N: np.ndarray, column_C: np.ndarray, limit_C: np.ndarray, depth: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Return (score_E, position_E, place_E, limit_C, entry_C) of the rows of a range that are not chosen."""
    gatherer = _Gatherer(limit_C, depth)
    place_T = np.zeros(0, np.int64)
    for _, block_BT in blocks:
        width = block_BT.shape[1]
        if not len(place_T):
            place_T = np.full(width, -1)
            place_T[column_C] = np.arange(len(column_C))
        entry_T = np.full(width, np.nan, block_BT.dtype)  # no score is >= NaN
        entry_T[column_C] = gatherer.entry_C
        hit = np.flatnonzero(block_BT >= entry_T)
        line, column = np.divmod(hit, width)
        free = ~chosen_N[line]
        gatherer.add(block_BT.reshape(-1)[hit[free]], line[free] + start, place_T[column[free]])
        chosen_N, start = chosen_N[len(block_BT) :], start + len(block_BT)
    return gatherer.entries()


class _Gatherer:
    """Entries of all columns, in ascending position; `entry_C` is the lowest score that is still let in."""

    def __init__(self, limit_C: np.ndarray, depth: int) -> None:
        self.entry_C = limit_C.copy()
        self._limit_C = limit_C.copy()
        self._depth = depth
        self._room = ROOM * depth * len(limit_C)
        self._entries: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []
        self._held = 0

    def add(self, score_E: np.ndarray, position_E: np.ndarray, place_E: np.ndarray) -> None:
        self._entries.append((score_E, position_E, place_E))
        self._held += len(score_E)
        if self._held > self._room:
            self._cut()

    def absorb(
        self, score_E: np.ndarray, position_E: np.ndarray, place_E: np.ndarray, limit_C: np.ndarray, entry_C: np.ndarray
    ) -> None:
        """Add what another gatherer has let in of rows that come after all of this one's."""
        fits_E = score_E >= self.entry_C[place_E]
        # Down to the higher limit both are complete. What equals it and was cut there stands behind what is here.
        self._limit_C, self.entry_C = np.maximum(self._limit_C, limit_C), np.maximum(self.entry_C, entry_C)
        self.add(score_E[fits_E], position_E[fits_E], place_E[fits_E])

    def entries(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
        """Return all that `absorb` takes of another gatherer."""
        score_E, position_E, place_E = self._joined()
        return score_E, position_E, place_E, self._limit_C, self.entry_C

    def lists(self) -> list[TopList]:
        lists = self._by_column()
        return [TopList(score_E, position_E, self._limit_C[c]) for c, (score_E, position_E) in enumerate(lists)]

    def _by_column(self) -> list[tuple[np.ndarray, np.ndarray]]:
        columns = len(self._limit_C)
        score_E, position_E, place_E = self._joined()
        # 16-bit keys are sorted by radix, several times faster than wider ones.
        order_E = np.argsort(place_E.astype(np.uint16) if columns < 2**16 else place_E, kind="stable")
        cuts = np.cumsum(np.bincount(place_E, minlength=columns))[:-1]
        return list(zip(np.split(score_E[order_E], cuts), np.split(position_E[order_E], cuts), strict=True))

    def _joined(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return all entries that are still let in or were before a cut at their own score."""
        empty = (self._limit_C[:0], np.zeros(0, np.int64), np.zeros(0, np.int64))
        score_E, position_E, place_E = (np.concatenate(parts) for parts in zip(empty, *self._entries, strict=True))
        fits_E = score_E >= self._limit_C[place_E]
        if not fits_E.all():
            score_E, position_E, place_E = score_E[fits_E], position_E[fits_E], place_E[fits_E]
        return score_E, position_E, place_E

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
