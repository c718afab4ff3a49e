"""Balanced selection: each pick is the row that helps some target most beyond what the chosen ones give it already.

BIDS, arXiv 2501.12147, algorithm 1. The running mean is subtracted per column, so the columns' heads suffice.

Shape suffixes: C columns in use.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from influray.protocols import AttributionSource, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission
from influray.selectors.candidates import CandidateHeads
from influray.selectors.normalisers import Normalised, NormaliserName, normalise
from influray.selectors.options import TaskWeights

REPLAY_ROWS = 4096  # read at a time


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
        self._task_weights = dict(task_weights or {})

    def select(self, problem: SelectionProblem) -> Selection:
        source, rows = problem.attribution, problem.attribution.rows
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        admission = Admission(problem)
        heads = CandidateHeads(source, normalised, self._iterate, admission.expect)
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

        def state() -> dict[str, np.ndarray]:
            return {"position": admission.chosen, "merit": np.array(merit), "place": np.array(place)}

        kept = problem.journal.restore()
        if kept is None:
            for position in admission.forced.tolist():
                utility_C = heads.line(position) - mean_C
                admission.take(position)
                chosen(position, int(utility_C.argmax()), float(utility_C.max()))
        else:
            merit, place = kept["merit"].tolist(), kept["place"].tolist()
            for line_C in replayed(admission, kept["position"], source, normalised):
                sum_C += line_C
            mean_C = sum_C / len(merit) if self._iterate and merit else mean_C
        heads.remove(admission.chosen)
        heads.remove(admission.newly_barred())
        while not admission.full and heads.left:
            wanted = max(1, admission.expected - len(merit))
            position, column, utility = heads.best(mean_C, len(merit), wanted)
            if admission.take(position):
                heads.remove(np.array([position]))
                chosen(position, column, utility)
            heads.remove(admission.newly_barred())
            problem.journal.record(len(merit), admission.expected, state)
        admission.finish()
        return Selection(rows[admission.chosen], np.array(merit), normalised.column_C[place])


def replayed(
    admission: Admission, positions: np.ndarray, source: AttributionSource, normalised: Normalised
) -> Iterator[np.ndarray]:
    """Take rows again that were chosen before, in their order, and yield z of each, [C]."""
    for start in range(0, len(positions), REPLAY_ROWS):
        block = positions[start : start + REPLAY_ROWS]
        for position, line_C in zip(block, normalised.lines(source.gather(source.rows[block])), strict=True):
            taken = admission.take(int(position))
            assert taken, "what was chosen before can be chosen again"
            yield line_C
