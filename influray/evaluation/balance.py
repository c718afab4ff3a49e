"""How evenly a selection serves the targets: AID and THI of BIDS, arXiv 2501.12147, section 3 and appendix.

Both are read off the matrix standardised over the whole pool, whatever method made the selection.

Shape suffixes: T target columns, C columns in use, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource, DataError
from influray.store.column_view import limited
from influray.store.moments import ColumnStats

BLOCK_ROWS = 4096  # gathered at a time


@dataclass(frozen=True)
class TaskAid:
    """AID over a task's columns in use: its mean, ends and standard deviation (ddof 0)."""

    mean: float
    min: float
    max: float
    std: float


@dataclass(frozen=True)
class Balance:
    """`aid_T[j]` = mean over the selection of Z[i, j], NaN where a column is left out.

    `thi_task` counts the chosen rows whose mean Z is highest over that task, `thi_instance` those whose highest
    column is one of that task's; ties go to the task of the lowest column.
    """

    groups: tuple[str, ...]
    aid_T: np.ndarray
    thi_task: dict[str, int]
    thi_instance: dict[str, int]

    def aid_by_task(self) -> dict[str, TaskAid | None]:
        """Return task -> its AID, in order of first column; None where no column of it is in use."""
        found: dict[str, TaskAid | None] = {}
        for task in dict.fromkeys(self.groups):
            value = self.aid_T[[group == task for group in self.groups]]
            value = value[~np.isnan(value)]
            found[task] = None if not len(value) else _summary(value)
        return found


def measure_balance(source: AttributionSource, stats: ColumnStats, groups: Sequence[str], rows: np.ndarray) -> Balance:
    """Return AID and THI of chosen rows; the rows are gathered in blocks.

    Raises:
        DataError: no column is in use, or nothing is chosen.
    """
    column_C = np.flatnonzero(stats.used_T)
    if not len(column_C) or not len(rows):
        raise DataError(
            f"attribution: {len(column_C)} of {len(groups)} columns can be standardised and {len(rows)} rows are "
            "chosen; balance needs at least one of each"
        )
    tasks = list(dict.fromkeys(groups))
    task_C = np.array([tasks.index(group) for group in groups])[column_C]
    present = list(dict.fromkeys(task_C.tolist()))
    total_C = np.zeros(len(column_C))
    by_task, by_instance = np.zeros(len(tasks), np.int64), np.zeros(len(tasks), np.int64)
    for start in range(0, len(rows), BLOCK_ROWS):
        score_BC = source.gather(rows[start : start + BLOCK_ROWS])[:, column_C].astype(np.float64)
        z_BC = (score_BC - stats.mean_T[column_C]) / stats.std_T[column_C]
        total_C += z_BC.sum(axis=0)
        mean_BG = np.stack([z_BC[:, task_C == g].mean(axis=1) for g in present], axis=1)
        by_task += np.bincount(np.array(present)[mean_BG.argmax(axis=1)], minlength=len(tasks))
        by_instance += np.bincount(task_C[z_BC.argmax(axis=1)], minlength=len(tasks))
    aid_T = np.full(len(groups), np.nan)
    aid_T[column_C] = total_C / len(rows)
    return Balance(
        tuple(groups),
        aid_T,
        dict(zip(tasks, by_task.tolist(), strict=True)),
        dict(zip(tasks, by_instance.tolist(), strict=True)),
    )


def measure_roles(
    source: AttributionSource, groups: Sequence[str], roles: Mapping[str, str], rows: np.ndarray
) -> dict[str, float]:
    """Return the mean standardised influence of chosen rows on each task that is not sought, as AID is by task.

    Raises:
        DataError: as `measure_balance`.
    """
    view = limited(source, groups, roles)
    if not view.groups:
        return {}
    by_task = measure_balance(view, view.stats, view.groups, rows).aid_by_task()
    return {task: aid.mean for task, aid in by_task.items() if aid is not None}


def _summary(value: np.ndarray) -> TaskAid:
    return TaskAid(float(value.mean()), float(value.min()), float(value.max()), float(value.std()))
