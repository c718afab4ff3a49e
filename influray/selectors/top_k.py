"""Top-k: the rows with the highest reduced score first. LESS, the plain sum and instance-max are this.

Shape suffixes: N rows, T target columns, C columns in use, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from influray.protocols import Selection, SelectionProblem
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.normalisers import NORMALISERS, normalise
from influray.selectors.options import look_up, positive_weights
from influray.selectors.reductions import REDUCTIONS


class TopK:
    """Rank rows by a reduction of their normalised scores; ties to the lowest row. One pass over the matrix.

    Args:
        normaliser: none or zscore.
        reduction: group_mean_max, instance_max, sum or mean.
        task_weights: task -> factor on its normalised columns, 1 where not given.
    """

    def __init__(
        self,
        normaliser: str = "none",
        reduction: str = "group_mean_max",
        task_weights: Mapping[str, float] | None = None,
    ) -> None:
        look_up(NORMALISERS, normaliser, "options.normaliser", "normaliser")
        self._normaliser = normaliser
        self._reduce = look_up(REDUCTIONS, reduction, "options.reduction", "reduction")
        self._task_weights = positive_weights({} if task_weights is None else task_weights, "options.task_weights")

    def select(self, problem: SelectionProblem) -> Selection:
        source = problem.attribution
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        groups = [problem.groups[j] for j in normalised.column_C]
        merits, places = [], []
        for _, block_BT in source.blocks():
            score_CB = np.ascontiguousarray(normalised.lines(block_BT).T)
            merit_B, place_B = self._reduce(score_CB, groups)
            merits.append(merit_B)
            places.append(place_B)
        merit_N, place_N = np.concatenate(merits), np.concatenate(places)
        chosen = take_in_order(Admission(problem), np.argsort(-merit_N, kind="stable"))
        return as_selection(problem, chosen, merit_N, np.where(place_N < 0, -1, normalised.column_C[place_N]))
