"""Drawn selections written out."""

from __future__ import annotations

import numpy as np


def strata(merit_N: np.ndarray, budget: int, count: int, drop_share: float, draw: list[int]) -> set[int]:
    """DEALRec's coverage-centric draw; `draw` is the order of chance. What it lacks, the lowest set aside fill."""
    order = np.argsort(-merit_N, kind="stable").tolist()
    dropped, kept = order[: int(drop_share * len(order))], order[int(drop_share * len(order)) :]
    if not kept:
        return set(dropped[::-1][:budget])
    low, high = min(merit_N[kept]), max(merit_N[kept])
    width = (high - low) / count
    levels: list[list[int]] = [[] for _ in range(count)]
    for row in draw:
        if row in kept:
            level = int((merit_N[row] - low) / width) if width > 0 else 0
            levels[min(level, count - 1)].append(row)
    chosen: list[int] = []
    for left, level in zip(range(count, 0, -1), sorted(levels, key=len), strict=True):
        chosen += level[: min(len(level), (budget - len(chosen)) // left)]
    rest = [row for row in draw if row in kept and row not in chosen] + dropped[::-1]
    return set((chosen + rest)[:budget])


def chances(merit_N: np.ndarray, temperature: float) -> np.ndarray:
    """The chance of each row to be the first of a Gumbel draw."""
    weight_N = np.exp((merit_N - merit_N.mean()) / merit_N.std() / temperature)
    return weight_N / weight_N.sum()
