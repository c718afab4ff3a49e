"""Eigenvalue-corrected Shampoo by its loops, float64."""

from __future__ import annotations

import numpy as np


def shampoo_influence(
    g_ND: np.ndarray, v_TD: np.ndarray, factors: tuple[tuple[int, int, int], ...], damping: float
) -> np.ndarray:
    """Return the influence [N, T] at one checkpoint: weight by weight, row by row, entry by entry."""
    score_NT = np.zeros((len(g_ND), len(v_TD)))
    for first, p, q in factors:
        pool = [g[first : first + p * q].reshape(p, q) for g in g_ND]
        targets = [v[first : first + p * q].reshape(p, q) for v in v_TD]
        _, left = np.linalg.eigh(sum(g @ g.T for g in pool))
        _, right = np.linalg.eigh(sum(g.T @ g for g in pool))
        curvature = np.zeros((p, q))
        for a in range(p):
            for b in range(q):
                curvature[a, b] = np.mean([(left[:, a] @ g @ right[:, b]) ** 2 for g in pool])
        lam = damping * curvature.mean()
        for a in range(p):
            for b in range(q):
                of_pool = np.array([left[:, a] @ g @ right[:, b] for g in pool])
                of_targets = np.array([left[:, a] @ v @ right[:, b] for v in targets])
                score_NT += np.outer(of_pool, of_targets) / (curvature[a, b] + lam)
    return score_NT
