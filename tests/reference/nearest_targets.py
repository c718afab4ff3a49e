"""TSDS written out: targets spread their mass over their nearest rows, one row begun at a time."""

from __future__ import annotations

import numpy as np


def densities(unit_ND: np.ndarray, sigma: float) -> np.ndarray:
    """Return the kernel density of every row among all of them, [N]."""
    return np.array([sum(max(0.0, 1 - ((u - v) ** 2).sum() / sigma**2) for v in unit_ND) for u in unit_ND])


def uniform_neighbours(z_NC: np.ndarray, most: int, alpha: float, scale: float) -> int:
    """Return K of KNN-Uniform: algorithm 1 of the paper, on distances 1 - z."""
    near_CL = np.sort(1 - z_NC.T, axis=1)[:, :most]
    for K in range(1, most):
        gaps = sum(d_L[K] - d_L[k] for d_L in near_CL for k in range(K))
        if alpha / scale * gaps >= (1 - alpha) * len(near_CL):
            return K
    return most


def mass(z_NC: np.ndarray, capacity_N: np.ndarray, most: int, weight_C, alpha: float, scale: float) -> np.ndarray:
    """Return the mass of every row, [N]."""
    near_CL = [np.argsort(-z_N, kind="stable")[:most].tolist() for z_N in z_NC.T]
    events = sorted(
        (sum(capacity_N[near_L[: k + 1]]), k, c) for c, near_L in enumerate(near_CL) for k in range(most - 1)
    )
    count = max(sum(capacity_N[near_L]) for near_L in near_CL)
    begun: dict[int, int] = {}
    for event, k, c in events:
        begun[c] = k
        total = 0.0
        for c_, k_ in begun.items():
            near_L, z_N = near_CL[c_], z_NC[:, c_]
            after = z_N[near_L[k_ + 1]]
            total += weight_C[c_] * sum(capacity_N[i] * (z_N[i] - after) for i in near_L[: k_ + 1])
        if alpha / scale * total >= (1 - alpha) * sum(weight_C):
            count = event
            break
    mass_N = np.zeros(len(z_NC))
    for c, near_L in enumerate(near_CL):
        left = count
        for i in near_L:
            taken = min(capacity_N[i], left)
            mass_N[i] += weight_C[c] * taken / count / sum(weight_C)
            left -= taken
    return mass_N
