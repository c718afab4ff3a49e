"""Row reductions: the normalised scores of a row -> one merit, and the column that won it where one does.

Sums run over the columns in their order, so that a row's merit does not depend on the block it is read in.

Shape suffixes: C columns in use, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

Reduction = Callable[[np.ndarray, Sequence[str]], tuple[np.ndarray, np.ndarray]]


def _sum(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return _total(score_CB), _nobody(score_CB)


def _mean(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    return _total(score_CB) / len(score_CB), _nobody(score_CB)


def _instance_max(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The highest column, the lowest of equals. Source: BIDS, arXiv 2501.12147, appendix A.3."""
    column_B = score_CB.argmax(axis=0)
    return score_CB[column_B, np.arange(score_CB.shape[1])], column_B


def _group_mean_max(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The highest mean over a task's columns.

    Source: LESS, arXiv 2402.04333; princeton-nlp/LESS matching.py. There a reshape, for tasks of equal size in
    one piece; here by name, so that sizes may differ and columns stand in any order.
    """
    means = []
    for task in dict.fromkeys(groups):
        member = [c for c, group in enumerate(groups) if group == task]
        means.append(_total(score_CB, member) / len(member))
    return np.max(means, axis=0), _nobody(score_CB)


# name -> (score_CB, task of each column) -> (merit_B, place of the winning column in C or -1)
REDUCTIONS: dict[str, Reduction] = {
    "group_mean_max": _group_mean_max,
    "instance_max": _instance_max,
    "mean": _mean,
    "sum": _sum,
}


def _total(score_CB: np.ndarray, member: Sequence[int] | None = None) -> np.ndarray:
    # Not score_CB.sum(axis=0): NumPy adds in another order where the block has one row only.
    total_B = np.zeros(score_CB.shape[1])
    for c in range(len(score_CB)) if member is None else member:
        total_B += score_CB[c]
    return total_B


def _nobody(score_CB: np.ndarray) -> np.ndarray:
    return np.full(score_CB.shape[1], -1)
