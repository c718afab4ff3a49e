"""Kernel ridge regression with a free constant, by the normal equations, and the same for rows held out by refitting."""

from __future__ import annotations

import numpy as np


def kernel_of(one_BD: np.ndarray, other_LD: np.ndarray, width: float) -> np.ndarray:
    return np.array([[np.exp(-((x - y) ** 2).sum() / (2 * width**2)) for y in other_LD] for x in one_BD])


def median_width(vector_LD: np.ndarray) -> float:
    count = len(vector_LD)
    return float(np.median([np.linalg.norm(vector_LD[i] - vector_LD[j]) for i in range(count) for j in range(i)]))


def ridge_prediction(vector_LD, score_LT, asked_BD, width: float, ridge: float) -> np.ndarray:
    """Minimise |Y - b - K a|^2 + ridge a'Ka over a and b, and return b + k a for the asked rows."""
    count = len(vector_LD)
    kernel_LL = kernel_of(vector_LD, vector_LD, width)
    bordered = np.zeros((count + 1, count + 1))
    bordered[:count, :count] = kernel_LL + ridge * np.eye(count)
    bordered[count, :count] = bordered[:count, count] = 1
    solved = np.linalg.solve(bordered, np.vstack([score_LT, np.zeros((1, score_LT.shape[1]))]))
    return kernel_of(asked_BD, vector_LD, width) @ solved[:count] + solved[count]


def refitted(vector_LD, score_LT, fold, width: float, ridge: float) -> np.ndarray:
    """Return what the fit without the rows of `fold` foretells of them."""
    rest = np.setdiff1d(np.arange(len(vector_LD)), fold)
    return ridge_prediction(vector_LD[rest], score_LT[rest], vector_LD[fold], width, ridge)
