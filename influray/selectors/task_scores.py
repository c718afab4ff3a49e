"""The score of every row for every task: its mean, or its largest, over the task's columns.

Sums run over the columns in their order, so that a row's score does not depend on the block it is read in.

Shape suffixes: N rows, G tasks, C columns in use, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.normalisers import Normalised


def members(groups: Sequence[str]) -> dict[str, list[int]]:
    """Return task -> the places of its columns; tasks in the order of their first column."""
    found: dict[str, list[int]] = {}
    for place, task in enumerate(groups):
        found.setdefault(task, []).append(place)
    return found


def total(score_CB: np.ndarray, places: Sequence[int] | None = None) -> np.ndarray:
    """Return the sum over the columns at these places, or all, added one after the other, [B]."""
    # Not score_CB.sum(axis=0): NumPy adds in another order where the block has one row only.
    total_B = np.zeros(score_CB.shape[1])
    for c in range(len(score_CB)) if places is None else places:
        total_B += score_CB[c]
    return total_B


def task_means(score_CB: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the mean over each task's columns, [G, B]."""
    return np.stack([total(score_CB, places) / len(places) for places in members(groups).values()])


def task_maxima(score_CB: np.ndarray, groups: Sequence[str]) -> np.ndarray:
    """Return the largest of each task's columns, [G, B]."""
    return np.stack([score_CB[places].max(axis=0) for places in members(groups).values()])


TaskScore = Literal["mean", "max"]
TASK_SCORES = {"mean": task_means, "max": task_maxima}


def score_tasks(source: AttributionSource, normalised: Normalised, groups: Sequence[str], name: str) -> np.ndarray:
    """Return the scores of all rows by task, [G, N] float64, held in memory; one pass.

    `groups` is the task of each column in use, `name` a key of `TASK_SCORES`.
    """
    score_GN = np.empty((len(members(groups)), source.shape[0]))
    offset = 0
    for _, block_BT in source.blocks():
        score_CB = np.ascontiguousarray(normalised.lines(block_BT).T)
        score_GN[:, offset : offset + len(block_BT)] = TASK_SCORES[name](score_CB, groups)
        offset += len(block_BT)
    return score_GN
