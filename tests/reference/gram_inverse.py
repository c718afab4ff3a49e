"""TRAK's influence by an explicit inverse, float64."""

from __future__ import annotations

import numpy as np


def gram_influence(g_ND: np.ndarray, v_TD: np.ndarray, ridge: float) -> np.ndarray:
    """Return G (G^T G + lambda I)^-1 V^T [N, T] with lambda = ridge times the mean of the diagonal."""
    gram = sum(np.outer(g, g) for g in g_ND)
    lam = ridge * np.mean(np.diag(gram))
    return g_ND @ np.linalg.inv(gram + lam * np.eye(len(gram))) @ v_TD.T
