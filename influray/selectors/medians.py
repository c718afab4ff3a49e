"""The exact median of every column, in memory that does not grow with the rows.

A radix select: the float64 bits of a score, made to ascend with it, are counted by their next twelve bits over the
rows that share the bits found so far, until few enough rows are left to be collected. No sample, so no data can
mislead it; three passes over the matrix as a rule, seven at most.

Shape suffixes: C columns, B rows of one block, D values of one digit.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from influray.protocols import AttributionSource

DIGIT_BITS = 12
ROOM = 4096  # rows of a column that may be collected


def medians(source: AttributionSource, column_C: np.ndarray, centre_C: np.ndarray | None = None) -> np.ndarray:
    """Return the median of each column, or of its distance from `centre_C`, float64 [C].

    The columns must be finite. The median of an even number of rows is the mean of the two in the middle.
    """
    rows = source.shape[0]
    rank_C = np.full(len(column_C), (rows - 1) // 2)  # of the lower middle, among the rows that share the prefix
    inside_C = np.full(len(column_C), rows)  # how many those are
    prefix_C = np.zeros(len(column_C), np.uint64)
    shift_C = np.full(len(column_C), 64, np.uint64)  # bits below the prefix
    while True:
        open_C = np.flatnonzero((shift_C == 64) | ((inside_C > ROOM) & (shift_C > 0)))
        if not len(open_C):
            break
        shift = int(shift_C[open_C[0]])  # the same for all that are still open
        width = min(DIGIT_BITS, shift)
        centre = None if centre_C is None else centre_C[open_C]
        tally_CD = _tally(_values(source, column_C[open_C], centre), prefix_C[open_C], shift - width, width)
        upto_CD = tally_CD.cumsum(axis=1)
        digit_C = (upto_CD <= rank_C[open_C, None]).sum(axis=1)
        inside_C[open_C] = tally_CD[np.arange(len(open_C)), digit_C]
        rank_C[open_C] -= upto_CD[np.arange(len(open_C)), digit_C] - inside_C[open_C]
        prefix_C[open_C] = prefix_C[open_C] << np.uint64(width) | digit_C.astype(np.uint64)
        shift_C[open_C] = shift - width
    low_C, high_C = _middle(_values(source, column_C, centre_C), prefix_C, shift_C, rank_C, inside_C)
    return low_C if rows % 2 else (low_C + high_C) / 2


def _values(source: AttributionSource, column_C: np.ndarray, centre_C: np.ndarray | None) -> Iterator[np.ndarray]:
    for _, block_BT in source.blocks():
        value_BC = block_BT[:, column_C].astype(np.float64)
        yield value_BC + 0.0 if centre_C is None else np.abs(value_BC - centre_C)  # + 0.0: there is one zero only


def _keys(value_BC: np.ndarray) -> np.ndarray:
    """Return uint64 that ascend as the values do: negative ones inverted, the sign bit of the others set."""
    bits_BC = value_BC.view(np.uint64)
    negative_BC = bits_BC >> np.uint64(63) == 1
    return np.where(negative_BC, ~bits_BC, bits_BC | np.uint64(1 << 63))


def _tally(values: Iterator[np.ndarray], prefix_C: np.ndarray, shift: int, width: int) -> np.ndarray:
    """Return how often each next digit occurs in the rows of each column that share its prefix, [C, D]."""
    columns = len(prefix_C)
    tally = np.zeros(columns << width, np.int64)
    start_C = np.arange(columns) << width
    for value_BC in values:
        key_BC = _keys(value_BC) >> np.uint64(shift)
        mine_BC = key_BC >> np.uint64(width) == prefix_C
        place_BC = (key_BC & np.uint64((1 << width) - 1)).astype(np.int64) + start_C
        tally += np.bincount(place_BC[mine_BC], minlength=len(tally))
    return tally.reshape(columns, 1 << width)


def _middle(
    values: Iterator[np.ndarray], prefix_C: np.ndarray, shift_C: np.ndarray, rank_C: np.ndarray, inside_C: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Return of each column the value at `rank_C` within its prefix, and the next one of the whole column."""
    columns = len(prefix_C)
    equal_C = np.full(columns, -np.inf)  # a value with the prefix: where all bits are known, the value
    above_C = np.full(columns, np.inf)  # the lowest value past the prefix
    kept: list[tuple[np.ndarray, np.ndarray]] = []
    for value_BC in values:
        key_BC = _keys(value_BC) >> shift_C
        same_BC = key_BC == prefix_C
        equal_C = np.maximum(equal_C, value_BC.max(axis=0, where=same_BC, initial=-np.inf))
        above_C = np.minimum(above_C, value_BC.min(axis=0, where=key_BC > prefix_C, initial=np.inf))
        line, column = np.nonzero(same_BC & (shift_C > 0))
        kept.append((column, value_BC[line, column]))
    column_E, value_E = (np.concatenate(parts) for parts in zip(*kept, strict=True))
    order_E = np.lexsort((value_E, column_E))
    value_E = value_E[order_E]
    start_C = np.searchsorted(column_E[order_E], np.arange(columns))
    low_C, high_C = equal_C.copy(), equal_C.copy()
    for c in range(columns):
        if shift_C[c] > 0:
            low_C[c] = value_E[start_C[c] + rank_C[c]]
        if rank_C[c] + 1 == inside_C[c]:
            high_C[c] = above_C[c]
        elif shift_C[c] > 0:
            high_C[c] = value_E[start_C[c] + rank_C[c] + 1]
    return low_C, high_C
