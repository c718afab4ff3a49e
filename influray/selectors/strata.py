"""Strata: rows of every level of merit, the rare levels first, in place of the highest merits alone.

Shape suffixes: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import numpy as np
from pydantic import Field

from influray.config_base import as_written
from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_open
from influray.selectors.normalisers import NormaliserName, TaskWeights
from influray.selectors.reductions import ReductionName, RowMerit


class Strata(Selector):
    """A seeded draw from layers of equal width in merit, after the highest merits are set aside.

    The strata take turns from the smallest to the largest, the lower merit first of equal sizes: each gives as many
    rows as it has, at most what is left of the budget over the strata that are left, rounded down. Where all of them
    do not fill the budget, the rows set aside follow, the lowest merit first. A smaller budget gives no prefix.

    Args:
        strata: how many. A few outliers leave nearly all rows in one: normaliser rank has none.
        drop_share: the part of the rows that is set aside, the highest merits; rounded down.
        normaliser, reduction, reduction_options, task_weights: as top_k has them.

    Source: DEALRec, arXiv 2401.17197, coverage-centric sampling: 50 strata and 10 % set aside. Its merit is influence
    plus a weighted gradient norm; here it is any reduction of the attribution matrix.
    """

    def __init__(
        self,
        strata: Annotated[int, Field(ge=1)] = 50,
        drop_share: Annotated[float, Field(ge=0, le=1)] = 0.1,
        normaliser: NormaliserName = "none",
        reduction: ReductionName = "mean",
        reduction_options: Mapping[str, Any] | None = None,
        task_weights: TaskWeights | None = None,
    ) -> None:
        self._strata = strata
        self._drop_share = drop_share
        self._merit = RowMerit(normaliser, reduction, reduction_options, task_weights)
        self.needs_features = self._merit.needs_features

    def select(self, problem: SelectionProblem) -> Selection:
        draw_N = np.random.default_rng(problem.seed).permutation(problem.attribution.shape[0])
        reduced = self._merit.of(problem)
        order_N = reduced.order()
        dropped = order_N[: int(as_written(self._drop_share) * len(order_N))]
        stratum_N = strata_of(reduced.merit_N, order_N[len(dropped) :], self._strata)
        admission = Admission(problem)
        spent = 0
        for position in admission.forced.tolist():
            spent += admission.take(position)
        drawn = draw_N[(stratum_N[draw_N] >= 0) & admission.open_N[draw_N]]
        size_S = np.bincount(stratum_N[drawn], minlength=self._strata)
        for turn, stratum in enumerate(np.argsort(size_S, kind="stable").tolist()):
            share = max(0, admission.expected - spent) // (self._strata - turn)
            spent += take_open(admission, drawn[stratum_N[drawn] == stratum].tolist(), share)
        for rest in (drawn.tolist(), dropped[::-1].tolist()):
            take_open(admission, rest)
        admission.finish()
        return as_selection(problem, admission.chosen, reduced.merit_N, reduced.column_N)


def strata_of(merit_N: np.ndarray, rows: np.ndarray, strata: int) -> np.ndarray:
    """Return the stratum of each of `rows` by its merit, 0 the lowest, and -1 for all others, [N]."""
    stratum_N = np.full(len(merit_N), -1)
    if len(rows):
        low, high = merit_N[rows].min(), merit_N[rows].max()
        share = (merit_N[rows] - low) / (high - low) if high > low else np.zeros(len(rows))
        stratum_N[rows] = np.minimum((share * strata).astype(np.int64), strata - 1)
    return stratum_N
