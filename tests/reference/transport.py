"""Unbalanced optimal transport from targets to pool rows by its iterations, and the softmax that it comes to."""

from __future__ import annotations

import numpy as np


def unbalanced_transport(
    cosine_NT: np.ndarray, entropy: float = 0.01, pool_weight: float = 1e-4, steps: int = 2000
) -> np.ndarray:
    """Return the mass of every pool row, [N]: Sinkhorn scaling with a hard marginal of the targets, and one of the pool
    that is held by `pool_weight` times a Kullback-Leibler divergence (Chizat et al. 2018, algorithm 1)."""
    rows, columns = cosine_NT.shape
    target_T, pool_N = np.full(columns, 1 / columns), np.full(rows, 1 / rows)
    kernel_NT = np.exp(-(1 - cosine_NT) / 2 / entropy) * pool_N[:, None] * target_T
    u_T, v_N = np.ones(columns), np.ones(rows)
    for _ in range(steps):
        u_T = target_T / (kernel_NT.T @ v_N)
        v_N = (pool_N / (kernel_NT @ u_T)) ** (pool_weight / (pool_weight + entropy))
    return (v_N[:, None] * kernel_NT * u_T).sum(axis=1)


def softmax_mass(z_NC: np.ndarray, temperature: float, weight_C: np.ndarray) -> np.ndarray:
    """Return the weighted mean over columns of every row's part of the column's softmax, [N]."""
    mass_N = np.zeros(len(z_NC))
    for z_N, weight in zip(z_NC.T, weight_C, strict=True):
        part_N = np.array([np.exp((z - max(z_N)) / temperature) for z in z_N])
        mass_N += weight * part_N / sum(part_N)
    return mass_N / sum(weight_C)
