"""A seeded uniform sample without replacement: the baseline every method has to beat."""

from __future__ import annotations

import numpy as np

from influray.protocols import ConfigError, Selection, SelectionProblem
from influray.selectors.admission import Admission, as_selection, take_in_order


class Random:
    """The first rows of one seeded permutation of the matrix's rows, so a larger budget extends a smaller one."""

    def select(self, problem: SelectionProblem) -> Selection:
        if problem.seed < 0:
            raise ConfigError(f"seed: found {problem.seed}, expected an integer of 0 or more")
        generator = np.random.Generator(np.random.PCG64(problem.seed))
        order = generator.permutation(problem.attribution.shape[0])
        return as_selection(problem, take_in_order(Admission(problem), order), None, None)
