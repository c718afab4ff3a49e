"""The effect of a treatment beside random controls, by plain loops and scipy-free textbook formulas."""

from __future__ import annotations

import math
import statistics


def effect(treated: list[float], control: list[list[float]]) -> tuple[float, float, float]:
    """Return (mean difference, variance, degrees of freedom); treated[seed], control[seed][draw]."""
    seeds, draws = len(control), len(control[0])
    differences = [treated[s] - control[s][r] for s in range(seeds) for r in range(draws)]
    by_seed = [treated[s] - statistics.fmean(control[s]) for s in range(seeds)]
    by_draw = [statistics.fmean(control[s][r] for s in range(seeds)) for r in range(draws)]
    a, b = statistics.variance(by_seed) / seeds, statistics.variance(by_draw) / draws
    freedom = (a + b) ** 2 / (a**2 / (seeds - 1) + b**2 / (draws - 1)) if a + b else math.inf
    return statistics.fmean(differences), a + b, freedom
