"""Whole columns of the attribution matrix, as many at a time as memory allows, and the ranks within one.

Shape suffixes: N rows, C columns asked for, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from influray.protocols import AttributionSource

GROUP_BYTES = 2**28  # of columns held at once: 288 K rows of float32 are 233 columns a pass


def whole_columns(source: AttributionSource, column_C: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (place in C, score_N) for each of these columns in order.

    One pass over the source per group of columns. The arrays are the caller's: it may sort them in place.
    """
    rows = source.shape[0]
    at_once = len(column_C)
    start = 0
    while start < len(column_C):
        group_CN, offset = None, 0
        for _, block_BT in source.blocks():
            if group_CN is None:
                at_once = max(1, GROUP_BYTES // (rows * block_BT.itemsize))
                group_CN = np.empty((len(column_C[start : start + at_once]), rows), block_BT.dtype)
            group_CN[:, offset : offset + len(block_BT)] = block_BT[:, column_C[start : start + at_once]].T
            offset += len(block_BT)
        assert group_CN is not None, "a source has rows"
        yield from enumerate(group_CN, start)
        start += len(group_CN)


def falling_ranks(score_N: np.ndarray) -> np.ndarray:
    """Return the rank of each score, 1 for the highest, float64; equal scores share the mean of their ranks."""
    order_N = np.argsort(score_N, kind="stable")
    sorted_N = score_N[order_N]
    start_R = np.flatnonzero(np.append(True, sorted_N[1:] != sorted_N[:-1]))  # of each run of equal scores
    stop_R = np.append(start_R[1:], len(score_N))
    rank_N = np.empty(len(score_N))
    rank_N[order_N] = np.repeat(len(score_N) + 1 - (start_R + 1 + stop_R) / 2, stop_R - start_R)
    return rank_N
