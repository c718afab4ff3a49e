"""Targets that stand for others, by trying every one at every step."""

from __future__ import annotations

import numpy as np


def cover_loop(A: np.ndarray, keep: int) -> list[int]:
    """Columns in order of choice: each adds most to the sum of the highest correlation with a chosen one, from 0."""
    likeness = np.corrcoef(np.asarray(A, np.float64), rowvar=False)
    chosen: list[int] = []
    for _ in range(keep):
        best = np.maximum(likeness[:, chosen].max(axis=1), 0) if chosen else np.zeros(len(likeness))
        gains = [
            -1.0 if t in chosen else sum(max(0.0, likeness[j, t] - best[j]) for j in range(len(likeness)))
            for t in range(len(likeness))
        ]
        chosen.append(int(np.argmax(gains)))
    return chosen
