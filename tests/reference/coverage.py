"""Greedy facility location written out: what every free row adds is computed anew for every pick."""

from __future__ import annotations

import numpy as np


def facility_location(z_NC: np.ndarray, budget: int) -> tuple[list[int], list[float], list[int]]:
    """Return (rows, gains, places of the columns); ties to the lowest row, then the lowest column."""
    free, rows, gains, places = list(range(len(z_NC))), [], [], []
    cover_C = np.zeros(z_NC.shape[1])
    while len(rows) < budget:
        gain_NC = np.maximum(z_NC[free] - cover_C, 0)
        total_N = np.array([sum(line) for line in gain_NC.tolist()])  # in the order of the columns
        best = int(total_N.argmax())
        if total_N[best] == 0 and cover_C.any():
            cover_C[:] = 0
            continue
        if total_N[best] == 0:  # no row that is left has a positive z
            best = int(z_NC[free].max(axis=1).argmax())
            places.append(int(z_NC[free[best]].argmax()))
        else:
            places.append(int(gain_NC[best].argmax()))
        gains.append(float(total_N[best]))
        rows.append(free.pop(best))
        cover_C = np.maximum(cover_C, z_NC[rows[-1]])
    return rows, gains, places


def value(z_NC: np.ndarray, rows: list[int]) -> float:
    """f: the sum over columns of the largest z of the rows, 0 where none is above."""
    return float(np.maximum(z_NC[rows].max(axis=0, initial=0.0), 0).sum())
