"""Column normalisers as a textbook writes them, over the whole matrix, in float64."""

from __future__ import annotations

import numpy as np


def normalised(name: str, score_NT: np.ndarray) -> np.ndarray:
    """Return Z [N, T]; NaN or infinite where a column has no spread of the kind that is divided by."""
    a_NT = score_NT.astype(np.float64)
    with np.errstate(invalid="ignore", divide="ignore"):
        if name == "zscore":
            return (a_NT - a_NT.mean(axis=0)) / a_NT.std(axis=0)
        if name == "robust":
            median_T = np.median(a_NT, axis=0)
            return (a_NT - median_T) / np.median(np.abs(a_NT - median_T), axis=0)
        if name == "minmax":
            return (a_NT - a_NT.min(axis=0)) / (a_NT.max(axis=0) - a_NT.min(axis=0))
        if name == "rank":
            return np.array([[mean_rank(a_NT[:, j], a) for j, a in enumerate(row)] for row in a_NT]) / len(a_NT)
    return a_NT


def mean_rank(values, value) -> float:
    """The mean of the places, counted from 1, that equals of `value` have among the sorted values."""
    return float(np.mean([place for place, other in enumerate(sorted(values), start=1) if other == value]))
