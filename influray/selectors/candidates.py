"""Rows that stand high in some column of the matrix, gathered in one pass with their whole lines.

A sample tells how far down a column a number of rows goes. It decides how many rows are gathered, never what is right:
a `Floor` says exactly which rows of a column are in, and all others stand behind these in the column's order.

Shape suffixes: N rows, T target columns, C columns in use, S rows of the sample, B rows of one block, U rows gathered.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource
from influray.store.ranges import Blocks, map_ranges

RUN_ROWS = 8  # of the sample that are neighbours: a disk reads them as fast as one


@dataclass(frozen=True)
class Floor:
    """How far down each column goes: to rows of this score, of which those up to this position are in.

    Where it is `tied`, many rows are likely to have this very score.
    """

    score_C: np.ndarray
    last_C: np.ndarray
    tied_C: np.ndarray


def sample(source: AttributionSource, out_N: np.ndarray, rows: int) -> tuple[np.ndarray, np.ndarray]:
    """Return (position_S ascending, line_ST) of about `rows` of those that are not out, evenly spaced."""
    free = np.flatnonzero(~out_N)
    runs = np.linspace(0, max(0, len(free) - RUN_ROWS), max(1, rows // RUN_ROWS)).astype(np.int64)
    position_S = free[np.unique(np.minimum(runs[:, None] + np.arange(RUN_ROWS), len(free) - 1))]
    return position_S, source.gather(source.rows[position_S])


def floor_at(score_SC: np.ndarray, position_S: np.ndarray, rank: int) -> Floor:
    """Return the floor at the `rank`-th of a sample in every column, from 1; of equal scores the first stand first."""
    place = len(score_SC) - rank
    score_C = np.partition(score_SC, place, axis=0)[place].copy()
    short_C = rank - (score_SC > score_C).sum(axis=0)
    last = [np.flatnonzero(score_SC[:, c] == score)[short_C[c] - 1] for c, score in enumerate(score_C)]
    return Floor(score_C, position_S[last], (score_SC == score_C).sum(axis=0) > 1)


def gather(
    source: AttributionSource, column_C: np.ndarray, floor: Floor, out_N: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    """Return (position_U ascending, line_UT) of the rows that are not out and in at some column; None for over `most`.

    With them comes the highest score under the floor of each column, [C]: the true one where the floor is tied, else
    the next number that a score could be. The columns must be finite.
    """
    width = source.shape[1]
    score_T, last_T = np.full(width, np.nan, floor.score_C.dtype), np.full(width, -1)  # no score is >= NaN
    score_T[column_C], last_T[column_C] = floor.score_C, floor.last_C
    under_C = np.nextafter(floor.score_C, -np.inf, dtype=floor.score_C.dtype)
    tied = np.flatnonzero(floor.tied_C)
    under_C[tied] = -np.inf
    # Of these only what is written to takes memory.
    position_U, line_UT, held = np.empty(most, np.int64), np.empty((most, width), floor.score_C.dtype), 0
    for position, line, under in map_ranges(source, rows_in, score_T, last_T, column_C[tied], by_row=(out_N,)):
        if held + len(position) > most:
            return None
        position_U[held : held + len(position)] = position
        line_UT[held : held + len(position)] = line
        held += len(position)
        under_C[tied] = np.maximum(under_C[tied], under)
    return position_U[:held], line_UT[:held], under_C


def rows_in(
    blocks: Blocks, start: int, out_N: np.ndarray, score_T: np.ndarray, last_T: np.ndarray, tied: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (position_U, line_UT) of the rows of a range that are not out and in at some column.

    With them comes the highest score under the floor of the columns `tied`.
    """
    under = np.full(len(tied), -np.inf)
    places, lines, offset = [np.zeros(0, np.int64)], [np.zeros((0, len(score_T)), score_T.dtype)], 0
    for _, block_BT in blocks:
        hit = np.flatnonzero((block_BT >= score_T).any(axis=1) & ~out_N[offset : offset + len(block_BT)])
        line, place = block_BT[hit], hit + (start + offset)
        kept = ((line > score_T) | ((line == score_T) & (place[:, None] <= last_T))).any(axis=1)
        places.append(place[kept])
        lines.append(line[kept])
        offset += len(block_BT)
        score_Bc = block_BT[:, tied]
        under = np.maximum(under, np.where(score_Bc < score_T[tied], score_Bc, -np.inf).max(axis=0))
    return np.concatenate(places), np.concatenate(lines), under
