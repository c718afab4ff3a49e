"""A selection at every budget below its own, for a page that lets people move the budget.

A budget's rows are the first ones in order of choice, so one pass over the rows gives what each prefix has: its AID by
target, whom its rows serve, where they come from, and how their influence on each task is distributed.

Shape suffixes: C columns in use, G tasks with one, M budgets, S labels of rows, H bins, n rows in order of choice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from influray.evaluation.budget_curve import columns_in_use
from influray.protocols import AttributionSource
from influray.store.moments import ColumnStats

BLOCK_ROWS = 4096  # gathered at a time


@dataclass(frozen=True)
class Prefixes:
    """What the first `budget_M[m]` rows give.

    A row belongs to the task over which its mean Z is highest (`flow_MSG`, by label and task), and its highest column
    is one of a task's (`instance_MG`); ties go to the task of the lowest column. `bins_MGH` counts the rows by their
    mean Z over a task; what lies outside the edges counts in the outermost bin.
    """

    tasks: tuple[str, ...]  # in order of first column
    column_C: np.ndarray
    task_C: np.ndarray  # place in `tasks`
    budget_M: np.ndarray
    aid_MC: np.ndarray
    flow_MSG: np.ndarray
    instance_MG: np.ndarray
    bins_MGH: np.ndarray


def measure_prefixes(
    source: AttributionSource,
    stats: ColumnStats,
    groups: Sequence[str],
    rows: np.ndarray,
    label_n: np.ndarray,
    labels: int,
    budgets: np.ndarray,
    edges_H: np.ndarray,
) -> Prefixes:
    """Return what the prefixes of `rows` give at ascending `budgets`; `label_n` counts from 0 to `labels` - 1.

    One pass in blocks of rows, sums in float64. `edges_H` are the ends of the bins, ascending, one more than bins.

    Raises:
        DataError: no column is in use, or nothing is chosen.
    """
    column_C = columns_in_use(stats, groups, rows, budgets)
    tasks = tuple(dict.fromkeys(groups[int(j)] for j in column_C))
    task_C = np.array([tasks.index(groups[int(j)]) for j in column_C])
    bins = len(edges_H) - 1
    total_C, flow_SG = np.zeros(len(column_C)), np.zeros((labels, len(tasks)), np.int64)
    instance_G, bins_GH = np.zeros(len(tasks), np.int64), np.zeros((len(tasks), bins), np.int64)
    aid, flow, instance, binned = [], [], [], []
    for start, stop in pairwise([0, *budgets.tolist()]):
        for low in range(start, stop, BLOCK_ROWS):
            high = min(stop, low + BLOCK_ROWS)
            score_BC = source.gather(rows[low:high])[:, column_C].astype(np.float64)
            z_BC = (score_BC - stats.mean_T[column_C]) / stats.std_T[column_C]
            mean_BG = task_means(z_BC, task_C, len(tasks))
            total_C += z_BC.sum(axis=0)
            np.add.at(flow_SG, (label_n[low:high], mean_BG.argmax(axis=1)), 1)
            instance_G += np.bincount(task_C[z_BC.argmax(axis=1)], minlength=len(tasks))
            bins_GH += count_bins(mean_BG, edges_H)
        aid.append(total_C / stop)
        flow.append(flow_SG.copy())
        instance.append(instance_G.copy())
        binned.append(bins_GH.copy())
    return Prefixes(
        tasks,
        column_C,
        task_C,
        np.asarray(budgets, np.int64),
        np.stack(aid),
        np.stack(flow),
        np.stack(instance),
        np.stack(binned),
    )


def task_means(z_BC: np.ndarray, task_C: np.ndarray, tasks: int) -> np.ndarray:
    """Return the mean of Z over the columns of each task, [B, G] float64."""
    # As `measure_balance` takes it: another order of summation would break ties between tasks otherwise.
    return np.stack([z_BC[:, task_C == g].mean(axis=1) for g in range(tasks)], axis=1)


def count_bins(mean_BG: np.ndarray, edges_H: np.ndarray) -> np.ndarray:
    """Return how many rows fall into each bin, [G, bins] int64; the outermost bins take what lies beyond them."""
    bins = len(edges_H) - 1
    place_BG = np.clip(np.searchsorted(edges_H, mean_BG, side="right") - 1, 0, bins - 1)
    return np.stack([np.bincount(place_BG[:, g], minlength=bins) for g in range(mean_BG.shape[1])])


def shared_prefixes(a: np.ndarray, b: np.ndarray, budgets: np.ndarray) -> np.ndarray:
    """Return how many rows the first `budget` of `a` and of `b` share, [M] int64; each holds a row once.

    A budget above a selection's size takes all of it.
    """
    _, place_a, place_b = np.intersect1d(a, b, assume_unique=True, return_indices=True)
    # A common row is in both prefixes from the budget at which the later of the two took it.
    return np.searchsorted(np.sort(np.maximum(place_a, place_b)), budgets, side="left")
