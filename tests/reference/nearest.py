"""The nearest rows by cosine, one after the other in float64."""

from __future__ import annotations

import numpy as np


def nearest(row_nF: np.ndarray, own_F: np.ndarray, k: int, without: int = -1) -> tuple[list[int], list[float]]:
    """Return the places of the k rows of the largest cosine with `own_F`, and these; equal ones by place."""
    own = [float(value) for value in own_F]
    found = []
    for place, row in enumerate(row_nF.astype(np.float64)):
        if place == without:
            continue
        lengths = np.sqrt((row * row).sum()) * np.sqrt(sum(value * value for value in own))
        found.append((-sum(a * b for a, b in zip(row.tolist(), own, strict=True)) / max(lengths, 1e-30), place))
    best = sorted(found)[:k]
    return [place for _, place in best], [-value for value, _ in best]
