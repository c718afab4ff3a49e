"""Layers: the best row of every column first, then the second best of every column, and so on.

Shape suffixes: N rows, C columns in use.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import Selection, SelectionProblem
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.columns import whole_columns
from influray.selectors.normalisers import NORMALISERS, normalise
from influray.selectors.options import look_up


class Layers:
    """Rows by their best place in any column; within a layer by z in the column of that place, then the lowest row.

    `merit` is that z and `column` the column. Of equal scores in a column the lowest row stands first. It reads and
    sorts every column whole, some at a time. A smaller budget gives a prefix.

    Args:
        normaliser: zscore, robust, rank, minmax or none. It orders the rows of a layer and moves none to another.

    Source: TAROT, arXiv 2412.00420; vita-epfl, the selection of a fixed size. There the features are whitened before
    they are compared, and a potential of optimal transport picks from the last layer, of which the budget cuts off a
    part; here every layer is ordered, so that a larger budget only adds.
    """

    def __init__(self, normaliser: str = "zscore") -> None:
        look_up(NORMALISERS, normaliser, "options.normaliser", "normaliser")
        self._normaliser = normaliser

    def select(self, problem: SelectionProblem) -> Selection:
        source = problem.attribution
        normalised = normalise(self._normaliser, source, problem.groups, {})
        rows = source.shape[0]
        layer_N, merit_N, column_N = np.full(rows, rows), np.full(rows, -np.inf), np.full(rows, -1)
        place_N = np.empty(rows, np.int64)
        for c, score_N in whole_columns(source, normalised.column_C):
            place_N[np.argsort(-score_N, kind="stable")] = np.arange(rows)
            z_N = normalised.values(score_N, c)
            better_N = (place_N < layer_N) | ((place_N == layer_N) & (z_N > merit_N))
            layer_N[better_N], merit_N[better_N] = place_N[better_N], z_N[better_N]
            column_N[better_N] = normalised.column_C[c]
        chosen = take_in_order(Admission(problem), np.lexsort((-merit_N, layer_N)))
        return as_selection(problem, chosen, merit_N, column_N)
