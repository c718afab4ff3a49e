"""Balance and coverage of every prefix, each computed from the start; the knee as a distance to the chord."""

from __future__ import annotations

import math

import numpy as np


def prefixes(z_NT: np.ndarray, groups: tuple[str, ...], rows: list[int], budgets: list[int]) -> list[dict]:
    """Return per budget: macro, worst, spread of AID, coverage and the worst task's coverage."""
    found = []
    for budget in budgets:
        aid: dict[str, list[float]] = {}
        best: dict[str, list[float]] = {}
        for j, group in enumerate(groups):
            column = [float(z_NT[i, j]) for i in rows[:budget]]
            aid.setdefault(group, []).append(math.fsum(column) / budget)
            best.setdefault(group, []).append(max(column))
        means = {group: math.fsum(values) / len(values) for group, values in aid.items()}
        macro = math.fsum(means.values()) / len(means)
        covered = [math.fsum(values) / len(values) for values in best.values()]
        found.append(
            {
                "macro": macro,
                "worst": min(means.values()),
                "worst_task": min(means, key=lambda group: means[group]),
                "spread": math.sqrt(math.fsum((value - macro) ** 2 for value in means.values()) / len(means)),
                "coverage": math.fsum(value for values in best.values() for value in values) / len(groups),
                "worst_coverage": min(covered),
            }
        )
    return found


def farthest_from_the_chord(x: list[float], y: list[float]) -> int:
    """Return the point above the segment from (0, 0) to (1, 1) that lies farthest from it, x and y within [0, 1]."""
    away = [abs(b - a) / math.sqrt(2) if b > a else 0.0 for a, b in zip(x, y, strict=True)]
    return away.index(max(away))
