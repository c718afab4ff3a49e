"""The known-answer check: do the rows of the sources that should help a task rank above the others?

A task may name sources of the pool that are known to be of its kind. If influence means anything, their rows
stand high in it. The measure is the area under the ROC curve, which no monotone change of the scores moves.

Shape suffixes: N rows of the attribution matrix, T target columns, C columns in use, B rows of one block,
G tasks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource
from influray.store.moments import ColumnStats


@dataclass(frozen=True)
class KnownAnswer:
    """The check of one task. `auc` is None where one side of the comparison has no rows or no column is used."""

    task: str
    sources: tuple[str, ...]
    absent: tuple[str, ...]  # expected sources that no row of the pool carries
    auc: float | None
    expected_rows: int
    other_rows: int
    columns: int


def auc(positive: np.ndarray, negative: np.ndarray) -> float:
    """Return P(a positive > a negative) + P(they are equal) / 2, for one of each drawn at random.

    Mann-Whitney by mid-ranks, O(n log n). Raises ValueError where a side is empty or a score is not finite.
    """
    scores_N = np.concatenate([np.asarray(positive), np.asarray(negative)])
    if not len(positive) or not len(negative):
        raise ValueError("AUC needs at least one score on each side")
    if not np.isfinite(scores_N).all():
        raise ValueError("AUC needs finite scores")
    _, place_N, count = np.unique(scores_N, return_inverse=True, return_counts=True)
    # Twice the mid-rank is an integer: the sum is exact, so equal inputs in another order give equal bits.
    doubled = 2 * np.cumsum(count) - count + 1
    rank_sum = int(doubled[place_N[: len(positive)]].sum())
    return (rank_sum - len(positive) * (len(positive) + 1)) / (2 * len(positive) * len(negative))


def task_scores(
    attribution: AttributionSource, groups: Sequence[str], stats: ColumnStats
) -> tuple[tuple[str, ...], np.ndarray, np.ndarray]:
    """Return (tasks in order of first column, rows int64 [N], scores float64 [N, G]).

    A score is the mean over the task's used columns of the standardised influence (A - mean) / std, and NaN
    where the task has no used column. One pass over the blocks.
    """
    tasks = tuple(dict.fromkeys(groups))
    column_C = np.flatnonzero(stats.used_T)
    group_C = [groups[j] for j in column_C.tolist()]
    weight_CG = np.zeros((len(column_C), len(tasks)))
    for g, task in enumerate(tasks):
        member_C = np.array([group == task for group in group_C], bool)
        weight_CG[member_C, g] = 1 / member_C.sum() if member_C.any() else 0
    empty_G = ~weight_CG.any(axis=0)
    rows, scores = [np.zeros(0, np.int64)], [np.zeros((0, len(tasks)))]
    for row_B, block_BT in attribution.blocks():
        # Columns that are left out go before the product: they may hold NaN, and NaN * 0 is NaN.
        z_BC = (block_BT[:, column_C].astype(np.float64) - stats.mean_T[column_C]) / stats.std_T[column_C]
        score_BG = z_BC @ weight_CG
        score_BG[:, empty_G] = np.nan
        rows.append(np.asarray(row_B))
        scores.append(score_BG)
    return tasks, np.concatenate(rows), np.concatenate(scores)


def known_answers(
    tasks: Sequence[str],
    score_NG: np.ndarray,
    source_N: Sequence[str],
    expected: Mapping[str, Sequence[str]],
    columns: Mapping[str, int],
) -> list[KnownAnswer]:
    """Return the check of every task of `expected` that names sources, in the order of `tasks`.

    `source_N` is the source of each row of `score_NG`; `columns` counts the used columns of a task.
    """
    known = set(source_N)
    found = []
    for g, task in enumerate(tasks):
        wanted = tuple(expected.get(task, ()))
        if not wanted:
            continue
        inside_N = np.fromiter((source in wanted for source in source_N), bool, len(source_N))
        score_N = score_NG[:, g]
        inside = int(inside_N.sum())
        possible = columns[task] > 0 and 0 < inside < len(score_N)
        value = auc(score_N[inside_N], score_N[~inside_N]) if possible else None
        absent = tuple(source for source in wanted if source not in known)
        found.append(KnownAnswer(task, wanted, absent, value, inside, len(score_N) - inside, columns[task]))
    return found
