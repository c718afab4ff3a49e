"""Selections in which targets or tasks choose one after the other, written out over a whole matrix."""

from __future__ import annotations

import numpy as np


def round_robin(score_NC: np.ndarray, budget: int) -> tuple[list[int], list[int]]:
    """Return (rows, columns): each column in turn takes its highest row that is free, the lowest of equals."""
    free, rows, columns = list(range(len(score_NC))), [], []
    while len(rows) < budget:
        column = len(rows) % score_NC.shape[1]
        rows.append(free.pop(int(score_NC[free, column].argmax())))
        columns.append(column)
    return rows, columns


def losing_round_robin(score_NC: np.ndarray, budget: int) -> tuple[list[int], list[int]]:
    """Return (rows, columns): a column takes its next row off its list at every turn, chosen already or not."""
    lists = [np.argsort(-score_N, kind="stable").tolist() for score_N in score_NC.T]
    rows, columns = [], []
    while len(rows) < budget:
        for column, ranked in enumerate(lists):
            row = ranked.pop(0) if ranked and len(rows) < budget else None
            if row is not None and row not in rows:
                rows.append(row)
                columns.append(column)
    return rows, columns


def layers(score_NC: np.ndarray, z_NC: np.ndarray, budget: int) -> list[int]:
    """The first rows of all columns, then the second ones; a layer by falling z where the row has that place."""
    order_NC = np.argsort(-score_NC, axis=0, kind="stable")
    rows: list[int] = []
    for layer in range(len(score_NC)):
        height = {}
        for c, row in enumerate(order_NC[layer].tolist()):
            height[row] = max(height.get(row, -np.inf), z_NC[row, c])
        rows += sorted((row for row in height if row not in rows), key=lambda row: (-height[row], row))
    return rows[:budget]


def quota(mean_NG: np.ndarray, share_G: list[int], budget: int) -> set[int]:
    """The union of each task's share, then the tasks in turn until the budget is spent."""
    order_GN = [np.argsort(-mean_N, kind="stable").tolist() for mean_N in mean_NG.T]
    chosen = {row for order, share in zip(order_GN, share_G, strict=True) for row in order[:share]}
    task = 0
    while len(chosen) < budget:
        chosen.add(next(row for row in order_GN[task] if row not in chosen))
        task = (task + 1) % len(order_GN)
    return chosen
