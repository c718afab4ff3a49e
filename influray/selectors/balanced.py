"""Balanced selection: each pick is the row that helps some target most beyond what the chosen ones give it already.

BIDS, arXiv 2501.12147, algorithm 1. The running mean is subtracted per column, so the columns' heads suffice.

Shape suffixes: C columns in use.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from influray.protocols import Selection, SelectionProblem
from influray.selectors.heads import ColumnHeads
from influray.selectors.normalisers import NORMALISERS, normalise
from influray.selectors.options import boolean, look_up, positive_weights


class Balanced:
    """argmax over rows not chosen of max over columns of (Z[i, j] - mean over the chosen of Z[k, j]), repeated.

    `merit` is that maximum and `column` the column that has it. The mean over nothing is 0; sums run in order of
    choice, in float64; ties go to the lowest row, then to the lowest column. A smaller budget gives a prefix.

    Args:
        normaliser: zscore (the paper's) or none.
        iterate: False subtracts nothing, which is instance-max.
        task_weights: task -> factor on its columns of Z, 1 where not given.

    Source: BIDS, arXiv 2501.12147, algorithm 1. The paper leaves the first pick, ties and columns without spread open.
    """

    def __init__(
        self,
        normaliser: str = "zscore",
        iterate: bool = True,
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        look_up(NORMALISERS, normaliser, "options.normaliser", "normaliser")
        self._normaliser = normaliser
        self._iterate = boolean(iterate, "options.iterate")
        self._task_weights = positive_weights({} if task_weights is None else task_weights, "options.task_weights")

    def select(self, problem: SelectionProblem) -> Selection:
        source, budget = problem.attribution, problem.budget
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        heads = ColumnHeads(source, normalised, first_depth(budget, len(normalised.column_C)))
        chosen, merit, place = np.empty(budget, np.int64), np.empty(budget), np.empty(budget, np.int64)
        sum_C = np.zeros(len(normalised.column_C))
        mean_C = np.zeros_like(sum_C)
        rows = source.rows
        for step in range(budget):
            position, place[step], merit[step] = heads.best(mean_C)
            heads.choose(position)
            chosen[step] = position
            if self._iterate:
                sum_C += normalised.lines(source.gather(rows[position : position + 1]))[0]
                mean_C = sum_C / (step + 1)
        return Selection(rows[chosen], merit, normalised.column_C[place])


def first_depth(budget: int, columns: int) -> int:
    """Return how long the columns' lists start: several times a column's fair share of the picks.

    Correlated columns walk over each other's picks, so a floor grows with the budget itself.
    """
    return max(8 * budget // columns, budget // 32)
