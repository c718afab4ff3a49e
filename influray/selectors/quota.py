"""Quota: the budget is shared out between the tasks, and each takes its share by its own mean."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection
from influray.selectors.normalisers import NormaliserName, TaskWeights, checked_weights, normalise
from influray.selectors.task_turns import TaskTurns


class Quota(Selector):
    """LESS for each task by itself, at an equal share of the budget.

    Every task takes its best rows by the mean over its columns, ties to the lowest row, until its share is full. A
    row that several want is chosen once and counts in the share of each. What is left of the budget is then
    spent in turns: each task takes its best row that is not chosen yet, one at a time. Shares are equal up to
    rounding, which favours the tasks whose first column comes first. Rows stand in the order of turns: all best ones,
    then all second ones. `merit` is the mean for the task that took the row. A smaller budget gives no prefix: its
    shares are smaller, and what is spent beyond them differs.

    Args:
        normaliser: none, zscore, robust, rank or minmax.
        task_weights: task -> its part of the budget against 1, where not given. Scaling its columns changes no order.

    Source: the baseline that the reviews of BIDS, arXiv 2501.12147, asked for; no paper fixes what becomes of rows
    that several tasks want. Tasks for which all rows score the same have no share.
    """

    def __init__(self, normaliser: NormaliserName = "none", task_weights: TaskWeights | None = None) -> None:
        self._normaliser: NormaliserName = normaliser
        self._task_weights = checked_weights(task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        normalised = normalise(self._normaliser, problem.attribution, problem.groups, self._task_weights)
        groups = [problem.groups[j] for j in normalised.column_C]
        turns = TaskTurns(problem.attribution, normalised, groups, "mean")
        names = list(dict.fromkeys(groups))
        admission = Admission(problem)
        turns.force(admission)
        weight_G = np.array([self._task_weights.get(names[g], 1.0) for g in turns.tasks])
        share = dict(zip(turns.tasks, shares(admission.expected, weight_G), strict=True))
        _fill_shares(turns, share, admission)
        turns.fill(admission)
        return as_selection(problem, admission.chosen, turns.merit_N, None)


def shares(budget: int, weight_G: np.ndarray) -> list[int]:
    """Return whole shares of the budget in proportion to the weights: rounded down, the rest to the largest parts
    that were cut off, the first of equals."""
    exact_G = budget * (weight_G / weight_G.sum())
    share_G = np.floor(exact_G).astype(np.int64)
    most_G = np.argsort(share_G - exact_G, kind="stable")
    share_G[most_G[: budget - int(share_G.sum())]] += 1
    return share_G.tolist()


def _fill_shares(turns: TaskTurns, share: Mapping[int, int], admission: Admission) -> None:
    filled = dict.fromkeys(share, 0)
    waiting = [task for task in share if share[task]]
    while waiting and not admission.full:
        for task in waiting:
            while not admission.full and (position := turns.head(task)) is not None:
                turns.step(task)
                if admission.open_N[position] and admission.take(position):
                    turns.credit(position, task)
                if turns.winner_N[position] >= 0:  # chosen for this task now, or for another before
                    filled[task] += 1
                    break
        waiting = [task for task in waiting if filled[task] < share[task] and turns.head(task) is not None]
