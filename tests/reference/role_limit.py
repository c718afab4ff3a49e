"""Limits of roles the plain way: standardise the matrix, and add up from nothing for every row that is tried."""

from __future__ import annotations

import numpy as np


def task_means(score_NT: np.ndarray, groups: list[str], task: str) -> list[float]:
    """Return the mean standardised score of every row on a task."""
    columns = [j for j, group in enumerate(groups) if group == task]
    z_NT = (score_NT - score_NT.mean(axis=0)) / score_NT.std(axis=0)
    return [sum(float(z_NT[row, j]) for j in columns) / len(columns) for row in range(len(score_NT))]


def first_breach(score_NT: np.ndarray, groups: list[str], roles: dict[str, str], rows: list[int]) -> str:
    """Return which limit the rows break first, and after how many; "" where they keep to all at every prefix."""
    for task, role in roles.items():
        mean_N = task_means(score_NT, groups, task)
        for count in range(1, len(rows) + 1):
            total = sum(mean_N[row] for row in rows[:count])
            if (role == "protect" and total < -1e-9) or (role == "avoid" and total > 1e-9):
                return f"{role} {task} after {count} rows: {total}"
    return ""


def allowed(score_NT: np.ndarray, groups: list[str], roles: dict[str, str]):
    """Return a function that says whether a row may follow those chosen."""
    means = {task: task_means(score_NT, groups, task) for task in roles}

    def may_follow(chosen: list[int], row: int) -> bool:
        for task, role in roles.items():
            total = sum(means[task][one] for one in [*chosen, row])
            if (role == "protect" and total < 0) or (role == "avoid" and total > 0):
                return False
        return True

    return may_follow


def filtered(order: list[int], size: int, may_follow) -> list[int]:
    """Return the rows of an order that may follow those taken before, up to `size` of them; a row has one try."""
    chosen: list[int] = []
    for row in order:
        if len(chosen) == size:
            break
        if may_follow(chosen, row):
            chosen.append(row)
    return chosen
