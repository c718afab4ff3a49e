"""What new rows add to the best chosen row of every target, against rows of the pool, and which of them add most.

Shape suffixes: N rows of the pool, n new rows, K rows that add something, C columns in use of the tasks sought,
B rows of a block, T all columns.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from influray.evaluation.stability import means_by_label
from influray.evaluation.worth import expected_gain
from influray.protocols import DataError, Limits, SelectionProblem
from influray.selectors.api import run_selector
from influray.selectors.columns import whole_columns
from influray.store.attribution import ArrayAttribution, Attribution
from influray.store.moments import ColumnStats

NEAREST = 3  # rows of most influence on each target that are kept


@dataclass(frozen=True)
class Columns:
    """The columns in use of the tasks that are sought: what they are, and how far the chosen rows help each."""

    column_C: np.ndarray
    groups: tuple[str, ...]
    tasks: tuple[str, ...]
    mean_C: np.ndarray
    std_C: np.ndarray
    best_C: np.ndarray  # of the chosen rows, in the units of the matrix
    help_C: np.ndarray  # the same in standard deviations, at least 0

    @classmethod
    def of(cls, matrix: Attribution, chosen: np.ndarray, roles: Mapping[str, str]) -> Columns:
        sought_T = np.array([roles.get(task, "seek") == "seek" for task in matrix.groups], bool)
        column_C = np.flatnonzero(matrix.stats.used_T & sought_T)
        if not len(column_C):
            raise DataError(f"{matrix.folder}: no column of a task that is sought can be standardised")
        groups = tuple(matrix.groups[j] for j in column_C.tolist())
        mean_C, std_C = matrix.stats.mean_T[column_C], matrix.stats.std_T[column_C]
        best_C = matrix.gather(chosen)[:, column_C].max(axis=0)
        help_C = np.maximum((best_C.astype(np.float64) - mean_C) / std_C, 0)
        return cls(column_C, groups, tuple(dict.fromkeys(groups)), mean_C, std_C, best_C, help_C)

    def standardised(self, line_BT: np.ndarray) -> np.ndarray:
        return (line_BT[:, self.column_C].astype(np.float64) - self.mean_C) / self.std_C

    def by_task(self, value_C: np.ndarray) -> dict[str, float]:
        """Return the mean over the columns of each task."""
        return {task: float(mean[0]) for task, mean in means_by_label(value_C[:, None], self.groups).items()}


@dataclass(frozen=True)
class Seen:
    """What one look at each column found."""

    gain_C: np.ndarray
    pool_gain_C: np.ndarray | None  # None where every row is chosen
    top_pool_C: np.ndarray  # largest influence of a pool row
    top_new_C: np.ndarray
    nearest: list[list[tuple[str, int, float]]]  # per column: ("pool" or "new", row, influence), the largest first

    @classmethod
    def of(
        cls,
        columns: Columns,
        own: Attribution,
        matrix: Attribution,
        free_N: np.ndarray,
        clean_n: np.ndarray,
        counted: int,
    ) -> Seen:
        C = len(columns.column_C)
        gain_C, pool_gain_C, top_pool_C, top_new_C = np.zeros((4, C))
        nearest = []
        of_both = (whole_columns(one, columns.column_C) for one in (own, matrix))
        for (c, score_N), (_, score_n) in zip(*of_both, strict=True):
            z_N, z_n = ((one.astype(np.float64) - columns.mean_C[c]) / columns.std_C[c] for one in (score_N, score_n))
            gain_C[c] = expected_gain(z_n[clean_n], float(columns.help_C[c]), counted)
            if free_N.any():
                pool_gain_C[c] = expected_gain(z_N[free_N], float(columns.help_C[c]), counted)
            clean = np.where(clean_n, score_n, -np.inf)
            top_pool_C[c], top_new_C[c] = score_N.max(), clean.max()
            each = [*_highest("pool", own.rows, score_N), *_highest("new", matrix.rows, clean)]
            nearest.append(sorted(each, key=lambda one: -one[2])[:NEAREST])  # equals: those of the pool, by row
        return cls(gain_C, pool_gain_C if free_N.any() else None, top_pool_C, top_new_C, nearest)


def _highest(of: str, rows: np.ndarray, score_N: np.ndarray) -> list[tuple[str, int, float]]:
    order = np.lexsort((rows, -score_N))[:NEAREST]
    return [(of, int(rows[i]), float(score_N[i])) for i in order if np.isfinite(score_N[i])]


@dataclass(frozen=True)
class Best:
    """The best subset, in order of choice."""

    rows: np.ndarray  # int64 [b]
    gains: list[float]  # what each added, mean over the targets of a task, then over tasks
    serves: list[int]  # the place of the column to which it added most of that
    gain_C: np.ndarray  # what all together add to each column


def best_subset(columns: Columns, matrix: Attribution, clean_n: np.ndarray, most: int) -> Best:
    """Return the rows of a matrix, of those that are `clean_n`, with which facility location goes on.

    It begins with what is chosen, and weighs columns so that tasks count alike; it ends where no row adds anything.
    """
    lines, rows, start = [], [], 0
    for row_B, line_BT in matrix.blocks():
        adds_B = (columns.standardised(line_BT) > columns.help_C).any(axis=1) & clean_n[start : start + len(row_B)]
        lines.append(line_BT[adds_B][:, columns.column_C])
        rows.append(row_B[adds_B])
        start += len(row_B)
    row_K, line_KC = np.concatenate(rows), np.concatenate(lines)
    share = {task: 1 / (len(columns.tasks) * columns.groups.count(task)) for task in columns.tasks}
    # The chosen rows are one line, of the best that they do in each column.
    source = ArrayAttribution(np.concatenate([columns.best_C[None], line_KC]))
    source.known_stats = ColumnStats(columns.mean_C, columns.std_C, np.ones(len(columns.column_C), bool))
    facts, limits = {"id": [str(place) for place in range(source.shape[0])]}, Limits(include=("0",))
    budget = 1 + min(most, len(row_K))
    problem = SelectionProblem(source, columns.groups, budget, facts=facts, limits=limits)
    order = run_selector(problem, "facility_location", {"task_weights": share}).rows[1:] - 1
    z_KC = (line_KC.astype(np.float64) - columns.mean_C) / columns.std_C
    share_C = np.array([share[task] for task in columns.groups])
    help_C, picked, gains, serves = columns.help_C, [], [], []
    for place in order.tolist():
        gain_C = np.maximum(z_KC[place] - help_C, 0)
        if not gain_C.any():  # from here on the selector covers anew
            break
        picked.append(place)
        gains.append(float(gain_C @ share_C))
        serves.append(int((gain_C * share_C).argmax()))
        help_C = np.maximum(help_C, z_KC[place])
    return Best(row_K[picked], gains, serves, help_C - columns.help_C)
