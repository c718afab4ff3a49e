"""Balanced selection: each pick is the row that helps some target most beyond what the chosen ones give it already.

BIDS, arXiv 2501.12147, algorithm 1. The running mean is subtracted per column, so the columns' heads suffice.

Shape suffixes: C columns in use.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission
from influray.selectors.heads import Heads
from influray.selectors.normalisers import NormaliserName, TaskWeights, checked_weights, normalise

PROGRESS_ROWS = 64  # chosen between two reports


class Balanced(Selector):
    """argmax over rows not chosen of max over columns of (Z[i, j] - mean over the chosen of Z[k, j]), repeated.

    `merit` is that maximum and `column` the column that has it. The mean over nothing is 0; sums run in order of
    choice, in float64; ties go to the lowest row, then to the lowest column. A smaller budget gives a prefix.

    Args:
        normaliser: zscore (the paper's), robust, rank, minmax or none.
        iterate: False subtracts nothing, which is instance-max.
        task_weights: task -> factor on its columns of Z, 1 where not given.

    Source: BIDS, arXiv 2501.12147, algorithm 1. The paper leaves the first pick, ties and columns without spread open.
    """

    def __init__(
        self,
        normaliser: NormaliserName = "zscore",
        iterate: bool = True,
        task_weights: TaskWeights | None = None,
    ) -> None:
        self._normaliser: NormaliserName = normaliser
        self._iterate = iterate
        self._task_weights = checked_weights(task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        source, rows = problem.attribution, problem.attribution.rows
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        admission = Admission(problem)
        heads = Heads(source, normalised, "balance" if self._iterate else "height", admission.expect)
        merit: list[float] = []
        place: list[int] = []
        sum_C = np.zeros(len(normalised.column_C))
        mean_C = np.zeros_like(sum_C)

        def chosen(position: int, column: int, utility: float) -> None:
            nonlocal sum_C, mean_C
            merit.append(utility)
            place.append(column)
            if self._iterate:
                sum_C += heads.line(position)
                mean_C = sum_C / len(merit)

        for position in admission.forced.tolist():
            utility_C = heads.line(position) - mean_C
            admission.take(position)
            chosen(position, int(utility_C.argmax()), float(utility_C.max()))
        heads.remove(admission.chosen)
        heads.remove(admission.newly_barred())
        while not admission.full and heads.left:
            wanted = max(1, admission.expected - len(merit))
            position, column, utility = heads.best(mean_C, len(merit), wanted)
            if admission.take(position):
                heads.remove(np.array([position]))
                chosen(position, column, utility)
            heads.remove(admission.newly_barred())
            if not len(merit) % PROGRESS_ROWS:
                problem.on_progress(len(merit), admission.expected)
        admission.finish()
        return Selection(rows[admission.chosen], np.array(merit), normalised.column_C[place])
