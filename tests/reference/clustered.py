"""Selections within clusters of like rows, written out."""

from __future__ import annotations

import numpy as np


def lloyd(point_Nm: np.ndarray, first: list[int], steps: int) -> np.ndarray:
    """Return the cluster of each row after so many steps from the centres at `first`."""
    centres = [point_Nm[i].copy() for i in first]
    labels = None
    for step in range(steps + 1):
        new = [int(np.argmin([((point - centre) ** 2).sum() for centre in centres])) for point in point_Nm]
        if new == labels or step == steps:
            return np.array(new)
        labels = new
        for c in range(len(centres)):
            mine = [point for point, label in zip(point_Nm, labels, strict=True) if label == c]
            centres[c] = np.mean(mine, axis=0) if mine else centres[c]
    raise AssertionError


def group(merit_N: np.ndarray, unit_ND: np.ndarray, label_N: np.ndarray, budget: int) -> list[int]:
    """Return the rows in order of choice."""
    chosen: dict[int, list[int]] = {label: [] for label in label_N.tolist()}

    def worth(i: int) -> float:
        taken = chosen[int(label_N[i])]
        if not taken or merit_N[i] <= 0:
            return float(merit_N[i])
        return float(merit_N[i] * (1 - np.mean([round(float(unit_ND[i] @ unit_ND[k]) * 1024) / 1024 for k in taken])))

    order: list[int] = []
    while len(order) < budget:
        left = {
            label: [i for i in np.flatnonzero(label_N == label).tolist() if i not in order]
            for label in chosen
            if len(chosen[label]) < (label_N == label).sum()
        }
        turn = min(
            left,
            key=lambda c: (
                (len(chosen[c]) + 0.5) / (label_N == c).sum(),
                -max(map(worth, left[c])),
                min(np.flatnonzero(label_N == c)),
            ),
        )
        best = max(left[turn], key=lambda i: (worth(i), -i))
        chosen[turn].append(best)
        order.append(best)
    return order
