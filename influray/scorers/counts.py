"""Products of sparse rows of counts with dense columns.

Shape suffixes: B rows, n entries of all rows, V buckets or terms, C columns.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import FeatureRows, SparseRows

_PIECE = 2**22  # numbers that are gathered at once: 32 MiB


def counts_of(rows: FeatureRows) -> SparseRows:
    """Return the counts of rows that have some."""
    assert rows.counts is not None, "required when the scorer is made"
    return rows.counts


def row_totals(rows: SparseRows) -> np.ndarray:
    """Return the sum of each row's counts, [B] int64."""
    return np.diff(np.concatenate([[0], np.cumsum(rows.count, dtype=np.int64)])[rows.offset])


def weighted_sums(offset: np.ndarray, place_n: np.ndarray, weight_n: np.ndarray, dense_VC: np.ndarray) -> np.ndarray:
    """Return for each row the sum over its entries of weight * dense_VC[place], [B, C] float64.

    A row's entries are added in their order, whatever other rows there are.
    """
    B, C = len(offset) - 1, dense_VC.shape[1]
    out_BC = np.zeros((B, C))
    start = 0
    while start < B:
        stop = max(start + 1, int(np.searchsorted(offset, offset[start] + _PIECE // C, side="right")) - 1)
        low, high = int(offset[start]), int(offset[stop])
        at = offset[start:stop] - low
        filled = np.flatnonzero(np.diff(offset[start : stop + 1]))
        if len(filled):
            value_nC = dense_VC[place_n[low:high]] * weight_n[low:high, None]
            out_BC[start + filled] = np.add.reduceat(value_nC, at[filled], axis=0)
        start = stop
    return out_BC
