"""A seeded uniform sample without replacement: the baseline every method has to beat."""

from __future__ import annotations

import numpy as np

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection, take_in_order


class Random(Selector):
    """The first rows of one seeded permutation of the matrix's rows, so a larger budget extends a smaller one."""

    def select(self, problem: SelectionProblem) -> Selection:
        order = np.random.default_rng(problem.seed).permutation(problem.attribution.shape[0])
        return as_selection(problem, take_in_order(Admission(problem), order), None, None)
