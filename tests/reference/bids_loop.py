"""BIDS as its paper writes it: a plain loop over the whole standardised matrix, in float64."""

from __future__ import annotations

import numpy as np


def bids_loop(z_NC: np.ndarray, budget: int, iterate: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return (rows, merit, column) of `budget` picks; ties to the lowest row, then the lowest column."""
    sum_C = np.zeros(z_NC.shape[1])
    free = list(range(len(z_NC)))
    rows, merits, columns = [], [], []
    for step in range(budget):
        mean_C = sum_C / step if step and iterate else np.zeros(len(sum_C))
        utility = z_NC[free] - mean_C
        best = int(utility.max(axis=1).argmax())  # argmax takes the first, and free is ascending
        rows.append(free.pop(best))
        merits.append(utility[best].max())
        columns.append(int(utility[best].argmax()))
        sum_C = sum_C + z_NC[rows[-1]]
    return np.array(rows), np.array(merits), np.array(columns)
