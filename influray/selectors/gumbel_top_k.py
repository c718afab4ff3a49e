"""Gumbel top-k: rows drawn without replacement, with odds that grow exponentially with their merit.

Shape suffixes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit
from influray.store.moments import column_moments, column_stats


class GumbelTopK(Selector):
    """Rank rows by merit / temperature + a seeded Gumbel number; ties to the lowest row.

    The first pick falls on row i with a chance proportional to exp(merit_i / temperature), each further one likewise
    among the rows that are left. `merit` is the sum that was ranked. A smaller budget gives a prefix.

    Args:
        temperature: above 0; low ones are top-k, high ones a uniform draw.
        standardise: whether the temperature is in standard deviations of the merit, or in its own units.
        normaliser, reduction, reduction_options, task_weights: as top_k has them.

    Source: MATES, arXiv 2406.06046, temperature 0.5, on predicted losses standardised over the pool. Its code adds
    the noise and keeps the smallest, which is no such draw; this is the draw. Merits without spread draw uniformly.
    DSIR, arXiv 2302.03169, draws so by log importance weights: own units, temperature 1.
    """

    def __init__(
        self,
        temperature: Annotated[float, Field(gt=0)] = 0.5,
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "mean",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
        standardise: bool = True,
    ) -> None:
        self._temperature = temperature
        self._standardise = standardise
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)
        self.needs_features = self._merit.needs_features

    def select(self, problem: SelectionProblem) -> Selection:
        random = np.random.default_rng(problem.seed)
        reduced = self._merit.of(problem)
        uniform_N = random.integers(1, 2**53, len(reduced.merit_N)) / 2.0**53  # never 0 or 1
        key_N = -np.log(-np.log(uniform_N))
        if not self._standardise:
            key_N += reduced.merit_N / self._temperature
        else:
            stats = column_stats(column_moments([(problem.attribution.rows, reduced.merit_N[:, None])]))
            if stats.used_T[0]:
                key_N += (reduced.merit_N - stats.mean_T[0]) / stats.std_T[0] / self._temperature
        chosen = take_in_order(Admission(problem), np.argsort(-key_N, kind="stable"))
        return as_selection(problem, chosen, key_N, reduced.column_N)
