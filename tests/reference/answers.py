"""What a query asks of the pool, by plain loops in float64."""

from __future__ import annotations

import numpy as np


def influence(pool_KND, query_KQD, weights) -> np.ndarray:
    """sum_k w_k <g_ki, v_kj>, float64 [N, Q]."""
    total_NQ = np.zeros((len(pool_KND[0]), len(query_KQD[0])))
    for pool_ND, query_QD, weight in zip(pool_KND, query_KQD, weights, strict=True):
        for i, row_D in enumerate(np.asarray(pool_ND, np.float64)):
            for j, query_D in enumerate(np.asarray(query_QD, np.float64)):
                total_NQ[i, j] += weight * float((row_D * query_D).sum())
    return total_NQ


def top(score_N, rows_N, k: int, sign: int = 1) -> tuple[list[int], list[float]]:
    """The k rows of highest (sign 1) or lowest (sign -1) score, equals by ascending row."""
    order = sorted(range(len(score_N)), key=lambda i: (-sign * score_N[i], rows_N[i]))[:k]
    return [int(rows_N[i]) for i in order], [float(score_N[i]) for i in order]
