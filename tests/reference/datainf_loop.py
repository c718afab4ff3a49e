"""DataInf by its loops: every module, target, pool row in turn, float64."""

from __future__ import annotations

from itertools import pairwise

import numpy as np


def datainf(g_ND: np.ndarray, v_TD: np.ndarray, bounds: tuple[int, ...], damping: float) -> np.ndarray:
    """Return the utility [N, T] at one checkpoint: minus the influence of the paper."""
    n = len(g_ND)
    score_NT = np.zeros((n, len(v_TD)))
    for start, stop in pairwise(bounds):
        g, v = g_ND[:, start:stop], v_TD[:, start:stop]
        lam = damping * np.mean([np.mean(g_i**2) for g_i in g])
        for t in range(len(v)):
            hvp = np.zeros(stop - start)
            for g_i in g:
                hvp += (v[t] - (v[t] @ g_i) / (lam + g_i @ g_i) * g_i) / (n * lam)
            for i in range(n):
                score_NT[i, t] += hvp @ g[i]
    return score_NT


def datainf_by_inverses(g_ND: np.ndarray, v_TD: np.ndarray, bounds: tuple[int, ...], damping: float) -> np.ndarray:
    """The same from what it stands for: the mean over the pool of (g g^T + lambda I)^-1 v, by explicit inverses."""
    score_NT = np.zeros((len(g_ND), len(v_TD)))
    for start, stop in pairwise(bounds):
        g, v = g_ND[:, start:stop], v_TD[:, start:stop]
        lam = damping * np.mean(g**2)
        inverse = np.mean([np.linalg.inv(np.outer(g_i, g_i) + lam * np.eye(stop - start)) for g_i in g], axis=0)
        score_NT += g @ inverse @ v.T
    return score_NT
