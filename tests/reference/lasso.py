"""The lasso over weights that are not negative, by projected gradient steps."""

from __future__ import annotations

import numpy as np


def projected_lasso(gram_SS: np.ndarray, toward_S: np.ndarray, penalty: float, steps: int = 200_000) -> np.ndarray:
    """Return the nu >= 0 that minimises nu' gram nu / 2 - nu' toward + penalty * sum nu, float64 [S]."""
    rate = 1 / np.linalg.eigvalsh(gram_SS).max()
    nu_S = np.zeros(len(toward_S))
    for _ in range(steps):
        last_S, nu_S = nu_S, np.maximum(0.0, nu_S - rate * (gram_SS @ nu_S - toward_S + penalty))
        if np.abs(nu_S - last_S).max() < 1e-13:
            break
    return nu_S
