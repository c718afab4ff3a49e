"""Top-k: the rows with the highest reduced score first. LESS, the plain sum and instance-max are this."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from influray.config_base import as_written
from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit


class TopK(Selector):
    """Rank rows by a reduction of their normalised scores; ties as the reduction says, then to the lowest row.

    A smaller budget gives a prefix.

    Args:
        normaliser: none, zscore, robust, rank or minmax.
        reduction: group_mean_max, instance_max, sum, mean, votes (ICONS), reciprocal_rank (CROPI), best_rank (BETR),
            transport (UOT), neighbours (KNN-Uniform) or neighbours_by_density (KNN-KDE).
        reduction_options: of the reduction; votes has top_share, 0.2 where not given, transport temperature, 0.02,
            neighbours neighbours, alpha and scale, and by density sigma too (influray.selectors.reductions).
        task_weights: task -> factor on its normalised columns, on its votes and on its 1 / rank; 1 where not given.
            Below 0 with mean and sum alone: with normaliser rank, {good: 1, bad: -1} is rank(good) - rank(bad).
        drop_share: the part of the rows that is set aside, the highest merits, rounded down: the hardest rows are often
            noise (BERT on a data diet, arXiv 2211.05610, of GraNd and EL2N). They follow all others, the lowest first.
    """

    def __init__(
        self,
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "group_mean_max",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
        drop_share: Annotated[float, Field(ge=0, le=1)] = 0.0,
    ) -> None:
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)
        self.needs_features = self._merit.needs_features
        self._drop_share = drop_share

    def select(self, problem: SelectionProblem) -> Selection:
        reduced = self._merit.of(problem)
        order_N = reduced.order()
        aside = int(as_written(self._drop_share) * len(order_N))
        chosen = take_in_order(Admission(problem), np.concatenate([order_N[aside:], order_N[:aside][::-1]]))
        return as_selection(problem, chosen, reduced.merit_N, reduced.column_N)
