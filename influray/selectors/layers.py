"""Layers: the best row of every column first, then the second best of every column, and so on.

Shape suffixes: N rows, C columns in use.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import numpy as np

from influray.protocols import AttributionSource, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order
from influray.selectors.candidates import floor_at, gather, sample
from influray.selectors.columns import whole_columns
from influray.selectors.normalisers import Normalised, NormaliserName, normalise

SPARE = 1.5  # layers listed, over those that a budget fills where no two columns want the same row
MIN_DEPTH = 16
MIN_RANK = 8  # in the sample: fewer, and the depth of a column is a matter of luck
SAMPLE_ROWS = 8192
WHOLE = 4  # lists of more than one row in so many take longer than whole columns


class Layers(Selector):
    """Rows by their best place in any column; within a layer by z in the column of that place, then the lowest row.

    `merit` is that z and `column` the column. Of equal scores in a column the lowest row stands first. It lists
    as many of the best rows of each column as the budget needs, and sorts whole columns only for budgets of about the
    whole matrix or where rows are forced in. A smaller budget gives a prefix.

    Args:
        normaliser: zscore, robust, rank, minmax or none. It orders the rows of a layer and moves none to another.

    Source: TAROT, arXiv 2412.00420; vita-epfl, the selection of a fixed size. There the features are whitened before
    they are compared, and a potential of optimal transport picks from the last layer, of which the budget cuts off a
    part; here every layer is ordered, so that a larger budget only adds.
    """

    def __init__(self, normaliser: NormaliserName = "zscore") -> None:
        self._normaliser: NormaliserName = normaliser

    def select(self, problem: SelectionProblem) -> Selection:
        source = problem.attribution
        admission = Admission(problem)
        places = _Places(source, normalise(self._normaliser, source, problem.groups, {}))
        if len(admission.forced):  # their places count too, however low
            places.of_all()
        chosen = take_in_order(admission, places.in_order(admission.expected))
        return as_selection(problem, chosen, places.merit_N, places.column_N)


class _Places:
    """The best place of each row in any column, as far down as the columns were looked at.

    `layer_N` is that place (the number of rows where it is not known yet), `merit_N` z in the column of it, and
    `column_N` that column.
    """

    def __init__(self, source: AttributionSource, normalised: Normalised) -> None:
        self._source, self._normalised, self._rows = source, normalised, source.shape[0]
        self._known = 0  # layers that are complete
        self.layer_N = np.full(self._rows, self._rows)
        self.merit_N, self.column_N = np.full(self._rows, -np.inf), np.full(self._rows, -1)

    def in_order(self, wanted: int) -> Iterator[int]:
        """Yield all rows, best first; about `wanted` will be asked for."""
        done, depth = 0, max(MIN_DEPTH, math.ceil(SPARE * wanted / len(self._normalised.column_C)))
        while done < self._rows:
            if self._known == done:
                if WHOLE * depth >= self._rows:
                    self.of_all()
                else:
                    self._list(depth)
            new = np.flatnonzero((self.layer_N >= done) & (self.layer_N < self._known))
            yield from new[np.lexsort((-self.merit_N[new], self.layer_N[new]))].tolist()
            done, depth = self._known, 2 * max(depth, self._known)

    def of_all(self) -> None:
        """Find the place of every row."""
        for c, score_N in whole_columns(self._source, self._normalised.column_C):
            order = np.argsort(-score_N, kind="stable")
            self._note(c, score_N[order], order)
        self._known = self._rows

    def _list(self, depth: int) -> None:
        """Complete about `depth` layers."""
        column_C, none_out_N = self._normalised.column_C, np.zeros(self._rows, bool)
        position_S, line_ST = sample(self._source, none_out_N, SAMPLE_ROWS)
        rank = min(len(line_ST), max(MIN_RANK, math.ceil(depth * len(line_ST) / self._rows)))
        floor = floor_at(line_ST[:, column_C], position_S, rank)
        found = gather(self._source, column_C, floor, none_out_N, self._rows)
        assert found is not None, "there are no more rows than these"
        position_U, line_UT, _ = found
        lists = []
        for c, score_U in enumerate(line_UT.T[column_C]):
            high_U = (score_U > floor.score_C[c]) | ((score_U == floor.score_C[c]) & (position_U <= floor.last_C[c]))
            lists.append((score_U[high_U], position_U[high_U]))
        self._known = min(len(score_E) for score_E, _ in lists)
        for c, (score_E, position_E) in enumerate(lists):
            order = np.argsort(-score_E, kind="stable")[: self._known]
            self._note(c, score_E[order], position_E[order])

    def _note(self, c: int, score_E: np.ndarray, position_E: np.ndarray) -> None:
        """Take in the best rows of column `c`, from the very best on."""
        z_E = self._normalised.values(score_E, c)
        place_E = np.arange(len(position_E))
        layer_E = self.layer_N[position_E]
        better_E = (place_E < layer_E) | ((place_E == layer_E) & (z_E > self.merit_N[position_E]))
        better = position_E[better_E]
        self.layer_N[better], self.merit_N[better] = place_E[better_E], z_E[better_E]
        self.column_N[better] = self._normalised.column_C[c]
