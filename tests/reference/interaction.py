"""Greedy choice by interaction written out: the gain of every free row is computed anew for every pick."""

from __future__ import annotations

import numpy as np


def interaction(
    z_NC: np.ndarray, weight_C: np.ndarray, eta: float, budget: int
) -> tuple[list[int], list[float], list[int]]:
    """Return (rows, gains, places of the columns); ties to the lowest row, then the lowest column."""
    free, rows, gains, places = list(range(len(z_NC))), [], [], []
    while len(rows) < budget:
        done_C = np.zeros(z_NC.shape[1])
        for row in rows:
            done_C = done_C + z_NC[row] / weight_C
        part_NC = z_NC[free] * ((1 - eta * done_C) / z_NC.shape[1])
        gain_N = np.array([sum(line) for line in part_NC.tolist()])  # in the order of the columns
        best = int(gain_N.argmax())
        places.append(int(part_NC[best].argmax()))
        gains.append(float(gain_N[best]))
        rows.append(free.pop(best))
    return rows, gains, places


def step(z_NC: np.ndarray, strength: float, budget: int) -> float:
    """eta: strength over the largest sum of means above 0 that `budget` rows can have, 0 where that is 0."""
    factor_C = np.full(z_NC.shape[1], 1 / z_NC.shape[1])
    means = sorted((sum(line) for line in (z_NC * factor_C).tolist()), reverse=True)
    most = sum(max(mean, 0) for mean in means[:budget])
    return strength / most if most > 0 else 0.0
