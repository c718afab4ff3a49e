"""Greedy MAP of a determinantal point process written out: a determinant for every candidate of every step."""

from __future__ import annotations

import numpy as np


def dpp(relevance_M: np.ndarray, vector_MF: np.ndarray, diversity: float, k: int) -> list[int]:
    """The first k candidates; ties go to the lowest."""
    chosen: list[int] = []
    for _ in range(k):
        free = [m for m in range(len(relevance_M)) if m not in chosen]
        volumes = [log_volume(relevance_M, vector_MF, diversity, [*chosen, m]) for m in free]
        chosen.append(free[int(np.argmax(volumes))])
    return chosen


def log_volume(relevance_M: np.ndarray, vector_MF: np.ndarray, diversity: float, chosen: list[int]) -> float:
    """The logarithm of the determinant of the kernel's part for `chosen`."""
    kernel = np.empty((len(chosen), len(chosen)))
    for i, a in enumerate(chosen):
        for j, b in enumerate(chosen):
            lengths = np.linalg.norm(vector_MF[a]) * np.linalg.norm(vector_MF[b])
            likeness = (1 + vector_MF[a] @ vector_MF[b] / lengths) / 2
            kernel[i, j] = likeness * np.exp((relevance_M[a] + relevance_M[b]) / (2 * diversity))
    return float(np.linalg.slogdet(kernel)[1])
