"""What new rows are worth, written out: every draw of rows is made, every best row is looked for anew."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np


def expected_gain(z_n: np.ndarray, least: float, count: int) -> float:
    """The mean over all draws of `count` rows of what the best of them adds."""
    draws = itertools.combinations(z_n.tolist(), count)
    return float(np.mean([max(0.0, max(draw) - least) for draw in draws]))


def cover(z_nC: np.ndarray) -> np.ndarray:
    """How far rows help each column: the best of them, at least 0."""
    return np.maximum(z_nC.max(axis=0, initial=0.0), 0.0)


def by_task(value_C: np.ndarray, groups: Sequence[str]) -> dict[str, float]:
    """The mean over each task's columns."""
    return {task: float(np.mean([v for v, g in zip(value_C, groups, strict=True) if g == task])) for task in groups}


def best_subset(
    z_nC: np.ndarray, help_C: np.ndarray, groups: Sequence[str], most: int
) -> tuple[list[int], list[float]]:
    """Greedy: the row that adds most to the mean over tasks, until `most` are taken or none adds; (rows, gains)."""
    rows: list[int] = []
    gains: list[float] = []
    while len(rows) < most:
        added = [
            float(np.mean(list(by_task(np.maximum(z_C - help_C, 0), groups).values()))) if i not in rows else 0.0
            for i, z_C in enumerate(z_nC)
        ]
        best = int(np.argmax(added))
        if added[best] <= 0:
            break
        rows.append(best)
        gains.append(added[best])
        help_C = np.maximum(help_C, z_nC[best])
    return rows, gains
