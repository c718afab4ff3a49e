"""Weighted draw: rows drawn by their sensitivity, how much they could weigh in a loss that is known at few rows only.

Shape suffixes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.clusters import ClusterCount, cluster_rows, members_of
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit
from influray.selectors.row_facts import features_of


class WeightedDraw(Selector):
    """A seeded draw with odds by s = merit of the row nearest to the cluster's centre + slope * |row - centre|^2.

    Rows are unit feature rows, clusters k-means of them; a merit below 0 counts as 0. The first pick falls on a row
    with a chance of s over its sum, each further one likewise among the rows left. `merit` is that chance p of a row:
    1 / (n p) is the weight with which the losses of n rows drawn with replacement sum to the pool's, without bias; this
    draw is without replacement, and weights are the trainer's to apply. Rows of s = 0 follow in any order. A smaller
    budget gives a prefix.

    Args:
        clusters: how many; auto = the root of the number of rows.
        slope: how fast the merit may change with the distance (the paper's Hoelder constant).
        normaliser, reduction, reduction_options, task_weights: as top_k has them.

    Source: sensitivity sampling, Axiotis et al., arXiv 2402.17327, with squared distances. There the merit is the loss,
    computed at the centres alone: attribution.scorer loss is that here, of features that hold vectors.
    """

    needs_features = True

    def __init__(
        self,
        clusters: ClusterCount = "auto",
        slope: Annotated[float, Field(ge=0)] = 1.0,
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "mean",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
    ) -> None:
        self._clusters: ClusterCount = clusters
        self._slope = slope
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        features, rows = features_of(problem, "weighted_draw"), problem.attribution.rows
        reduced = self._merit.of(problem)
        found = cluster_rows(features, rows, self._clusters, problem.seed)
        sensitivity_N = self._slope * found.distance_N
        for positions in members_of(found.label_N).values():
            centre = positions[found.distance_N[positions].argmin()]
            sensitivity_N[positions] += max(0.0, float(reduced.merit_N[centre]))
        uniform_N = np.random.default_rng(problem.seed).integers(1, 2**53, len(rows)) / 2.0**53  # never 0 or 1
        # The least of exponential times s away from 0 has the odds of s.
        wait_N = -np.log(uniform_N) / np.where(sensitivity_N > 0, sensitivity_N, 1)
        chosen = take_in_order(Admission(problem), np.lexsort((wait_N, sensitivity_N <= 0)))
        chance_N = sensitivity_N / (sensitivity_N.sum() or 1)
        return as_selection(problem, chosen, chance_N, reduced.column_N)
