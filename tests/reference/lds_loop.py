"""Spearman's correlation and the linear datamodelling score by plain loops."""

from __future__ import annotations

import math


def ranks(values: list[float]) -> list[float]:
    found = []
    for value in values:
        below = sum(1 for other in values if other < value)
        equal = sum(1 for other in values if other == value)
        found.append(below + (equal + 1) / 2)
    return found


def pearson(one: list[float], other: list[float]) -> float:
    n = len(one)
    a, b = sum(one) / n, sum(other) / n
    product = sum((x - a) * (y - b) for x, y in zip(one, other, strict=True))
    scale = math.sqrt(sum((x - a) ** 2 for x in one) * sum((y - b) ** 2 for y in other))
    return product / scale if scale > 1e-9 else 0.0


def spearman(one: list[float], other: list[float]) -> float:
    return pearson(ranks(one), ranks(other))


def lds(scores, subsets, losses, tasks) -> dict[str, float]:
    """Mean over a task's targets of Spearman between sum of scores and minus the mean loss over seeds.

    scores[row][target], subsets[m] = rows, losses[seed][m][target].
    """
    by_task: dict[str, list[float]] = {}
    for t, task in enumerate(tasks):
        predicted = [sum(float(scores[row][t]) for row in subset) for subset in subsets]
        measured = [-sum(one[m][t] for one in losses) / len(losses) for m in range(len(subsets))]
        by_task.setdefault(task, []).append(spearman(predicted, measured))
    return {task: sum(values) / len(values) for task, values in by_task.items()}
