"""TAROT's whitening on joined data, as its code has it, float64."""

from __future__ import annotations

import numpy as np


def whitened(g_ND: np.ndarray, v_TD: np.ndarray, ridge: float) -> tuple[np.ndarray, np.ndarray]:
    """Return the whitened rows of pool and targets, not yet units."""
    joined = np.concatenate([g_ND, v_TD])
    joined = joined - joined.mean(axis=0)
    second = joined.T @ joined / len(joined) + ridge * np.eye(joined.shape[1])
    white = joined @ np.linalg.inv(np.linalg.cholesky(second)).T
    return white[: len(g_ND)], white[len(g_ND) :]


def whitened_cosines(g_ND: np.ndarray, v_TD: np.ndarray, ridge: float) -> np.ndarray:
    """Return the score [N, T]."""
    g, v = whitened(g_ND, v_TD, ridge)
    return (g / np.linalg.norm(g, axis=1, keepdims=True)) @ (v / np.linalg.norm(v, axis=1, keepdims=True)).T
