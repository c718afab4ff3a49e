"""How a selection's service of the targets grows with its budget: AID and coverage of its first n rows.

AID is BIDS' (arXiv 2501.12147, section 3): the mean of Z over the rows. Coverage of a target is the best Z among the
rows: it never falls as rows are added, and tells whether some row helps the target, where AID tells how many do.

Shape suffixes: T target columns, C columns in use, G tasks with one, M budgets, n rows in order of choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from influray.protocols import AttributionSource, DataError
from influray.store.moments import ColumnStats

BLOCK_ROWS = 4096  # gathered at a time
POINTS = 24


@dataclass(frozen=True)
class BudgetCurve:
    """What the first `budget_M[m]` rows give. By task, a mean over the task's columns in use."""

    tasks: tuple[str, ...]  # those with a column in use, in order of first column
    budget_M: np.ndarray  # int64, ascending
    aid_MG: np.ndarray
    covered_MG: np.ndarray
    coverage_M: np.ndarray  # mean over the columns in use of the best Z among the rows

    @property
    def macro(self) -> np.ndarray:
        """Mean of AID over the tasks, [M]."""
        return self.aid_MG.mean(axis=1)

    @property
    def worst(self) -> np.ndarray:
        """AID of the worst task, [M]."""
        return self.aid_MG.min(axis=1)

    @property
    def spread(self) -> np.ndarray:
        """Standard deviation of AID over the tasks (ddof 0), [M]."""
        return self.aid_MG.std(axis=1)

    @property
    def worst_covered(self) -> np.ndarray:
        """Coverage of the worst task, [M]."""
        return self.covered_MG.min(axis=1)

    def worst_task(self, m: int) -> str:
        """Return the task of `worst[m]`, the first of equal ones."""
        return self.tasks[int(self.aid_MG[m].argmin())]


def budget_grid(total: int, points: int = POINTS) -> np.ndarray:
    """Return at most `points` budgets from 1 to `total`, that included, int64 ascending.

    They are spaced as squares: close where the curves bend, and still near each other at the end.
    """
    return np.unique(np.maximum(1, np.round(total * (np.arange(1, points + 1) / points) ** 2))).astype(np.int64)


def measure_curve(
    source: AttributionSource, stats: ColumnStats, groups: Sequence[str], rows: np.ndarray, budgets: np.ndarray
) -> BudgetCurve:
    """Return the curve of the prefixes of `rows` (in order of choice) at ascending `budgets`.

    One pass: the rows are gathered in order and in blocks; sums and maxima run in float64, so the memory is a block
    and one line of columns a budget.

    Raises:
        DataError: no column is in use, or nothing is chosen.
    """
    column_C = columns_in_use(stats, groups, rows, budgets)
    group_C = [groups[int(j)] for j in column_C]
    tasks = tuple(dict.fromkeys(group_C))
    member_GC = np.array([[group == task for group in group_C] for task in tasks], np.float64)
    member_GC /= member_GC.sum(axis=1, keepdims=True)
    total_C, best_C = np.zeros(len(column_C)), np.full(len(column_C), -np.inf)
    aid_MC, best_MC = (np.empty((len(budgets), len(column_C))) for _ in range(2))
    for m, (start, stop) in enumerate(pairwise([0, *budgets.tolist()])):
        for low in range(start, stop, BLOCK_ROWS):
            score_BC = source.gather(rows[low : min(stop, low + BLOCK_ROWS)])[:, column_C].astype(np.float64)
            z_BC = (score_BC - stats.mean_T[column_C]) / stats.std_T[column_C]
            total_C += z_BC.sum(axis=0)
            np.maximum(best_C, z_BC.max(axis=0), out=best_C)
        aid_MC[m], best_MC[m] = total_C / stop, best_C
    return BudgetCurve(
        tasks, np.asarray(budgets, np.int64), aid_MC @ member_GC.T, best_MC @ member_GC.T, best_MC.mean(axis=1)
    )


def columns_in_use(stats: ColumnStats, groups: Sequence[str], rows: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Return the columns that can be standardised, ascending, for prefixes of `rows` at ascending `budgets`.

    Raises:
        DataError: no column is in use, or nothing is chosen.
    """
    column_C = np.flatnonzero(stats.used_T)
    if not len(column_C) or not len(rows):
        raise DataError(
            f"attribution: {len(column_C)} of {len(groups)} columns can be standardised and {len(rows)} rows are "
            "chosen; a budget curve needs at least one of each"
        )
    assert budgets[0] >= 1, "a budget holds a row"
    assert budgets[-1] <= len(rows), "a budget is a prefix of the rows"
    assert (np.diff(budgets) > 0).all(), "budgets ascend"
    return column_C
