"""Top-k: the rows with the highest reduced score first. LESS, the plain sum and instance-max are this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit


class TopK(Selector):
    """Rank rows by a reduction of their normalised scores; ties as the reduction says, then to the lowest row.

    A smaller budget gives a prefix.

    Args:
        normaliser: none, zscore, robust, rank or minmax.
        reduction: group_mean_max, instance_max, sum, mean, votes (ICONS), reciprocal_rank (CROPI) or best_rank (BETR).
        reduction_options: of the reduction; votes has top_share, 0.2 where not given.
        task_weights: task -> factor on its normalised columns, on its votes and on its 1 / rank; 1 where not given.
    """

    def __init__(
        self,
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "group_mean_max",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
    ) -> None:
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        reduced = self._merit.of(problem)
        chosen = take_in_order(Admission(problem), reduced.order())
        return as_selection(problem, chosen, reduced.merit_N, reduced.column_N)
