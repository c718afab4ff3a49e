"""Facility location: each pick is the row that adds most to the sum over columns of the best chosen row.

Shape suffixes: N rows, C columns in use, B rows of one block, K blocks of bounds.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import AttributionSource, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission
from influray.selectors.normalisers import Normalised, NormaliserName, TaskWeights, checked_weights, normalise

WIDTH = 256  # rows of one block of bounds
PATIENCE = 4  # a pass over all N rows takes as long as N / PATIENCE rows looked up, or less


class FacilityLocation(Selector):
    """Greedy maximisation of f(S) = sum over columns of max(0, max over i in S of Z[i, j]).

    f of nothing is 0 and a negative z counts as 0: what harms a target covers it no worse than no row at all, and f
    is monotone and submodular. `merit` is what a row adds, `column` the column to which it adds most, the lowest of
    equals. Ties go to the lowest row. A smaller budget gives a prefix.

    f is exhausted once the best row of every column is in, after as many picks as there are columns or fewer. When
    no row adds anything, covering begins anew with the rows that are left, from f = 0; rows without any positive z
    come last, by falling largest z, with merit 0.

    Cost: every such beginning looks at all rows once or more, and a budget of B has B / C of them at the least: linear
    in N for a budget of a fixed number of rows, quadratic for a fraction of N.

    Args:
        normaliser: zscore, so that targets weigh alike; robust, rank, minmax; none is the published form.
        task_weights: task -> factor on its columns of Z, 1 where not given.

    Source: DELIFT as in NN-CIFT, arXiv 2502.09969, and the set coverage of arXiv 2305.14907 have this f over
    similarities; there over the pool itself, here over the target columns. Evaluation is lazy (Minoux 1978, CELF):
    what a row adds only falls, in floating point too, as sums run over the columns in their order; hence exact.
    """

    def __init__(self, normaliser: NormaliserName = "zscore", task_weights: TaskWeights | None = None) -> None:
        self._normaliser: NormaliserName = normaliser
        self._task_weights = checked_weights(task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        source = problem.attribution
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        cover = _Cover(source, normalised)
        first_N, height_N = cover.of_all()
        admission = Admission(problem)
        merit: list[float] = []
        place: list[int] = []

        def chosen(position: int) -> None:
            gain, column = cover.add(position)
            merit.append(gain)
            place.append(column)

        for position in admission.forced.tolist():
            admission.take(position)
            chosen(position)
        admission.newly_barred()
        bounds = _Bounds(np.where(admission.open_N, first_N, -np.inf))
        looked = 0  # rows since the last pick
        while not admission.full:
            position, gain = bounds.first()
            if gain <= 0:
                if cover.empty:
                    break
                cover.clear()
                bounds = _Bounds(np.where(admission.open_N, first_N, -np.inf))
                continue
            if cover.gains(np.array([position]))[0] < gain:
                if looked > len(first_N) // PATIENCE:
                    bounds, looked = _Bounds(np.where(admission.open_N, cover.of_all()[0], -np.inf)), 0
                else:
                    likely = bounds.heads(looked + 1)  # twice as many each time: one by one they are slow to look up
                    bounds.lower(likely, cover.gains(likely))
                    looked += len(likely)
                continue
            looked = 0
            if admission.take(position):
                chosen(position)
            bounds.lower(np.array([position]), -np.inf)
            bounds.lower(admission.newly_barred(), -np.inf)
        for position in np.argsort(-height_N, kind="stable").tolist():
            if admission.full:
                break
            if admission.open_N[position] and admission.take(position):
                chosen(position)
        admission.finish()
        return Selection(source.rows[admission.chosen], np.array(merit), normalised.column_C[place])


class _Cover:
    """How well each column is covered by the rows added since it was last cleared."""

    def __init__(self, source: AttributionSource, normalised: Normalised) -> None:
        self._source = source
        self._normalised = normalised
        self._cover_C = np.zeros(len(normalised.column_C))

    @property
    def empty(self) -> bool:
        return not self._cover_C.any()

    def clear(self) -> None:
        self._cover_C[:] = 0

    def of_all(self) -> tuple[np.ndarray, np.ndarray]:
        """Return what each row would add, and its largest z; one pass."""
        gains, heights = [], []
        for _, block_BT in self._source.blocks():
            z_BC = self._normalised.lines(block_BT)
            gains.append(_total(np.maximum(z_BC - self._cover_C, 0)))
            heights.append(z_BC.max(axis=1))
        return np.concatenate(gains), np.concatenate(heights)

    def gains(self, positions: np.ndarray) -> np.ndarray:
        """Return what each of these rows would add."""
        return _total(np.maximum(self._lines(positions) - self._cover_C, 0))

    def add(self, position: int) -> tuple[float, int]:
        """Add a row; return what it adds and the place of the column to which it adds most."""
        z_1C = self._lines(np.array([position]))
        gain_1C = np.maximum(z_1C - self._cover_C, 0)
        self._cover_C = np.maximum(self._cover_C, z_1C[0])
        # A row that adds nothing has a column too: that of its largest z.
        return float(_total(gain_1C)[0]), int((gain_1C if gain_1C.any() else z_1C).argmax())

    def _lines(self, positions: np.ndarray) -> np.ndarray:
        return self._normalised.lines(self._source.gather(self._source.rows[positions]))


class _Bounds:
    """An upper bound per row, and the row with the largest: maxima of blocks make looking it up cheap."""

    def __init__(self, bound_N: np.ndarray) -> None:
        self._bound_KW = np.full((-(-len(bound_N) // WIDTH), WIDTH), -np.inf)
        self._bound_KW.reshape(-1)[: len(bound_N)] = bound_N
        self._top_K = self._bound_KW.max(axis=1)

    def first(self) -> tuple[int, float]:
        """Return (position, bound) of the largest bound, the lowest position of equals."""
        block = int(self._top_K.argmax())
        return block * WIDTH + int(self._bound_KW[block].argmax()), float(self._top_K[block])

    def heads(self, most: int) -> np.ndarray:
        """Return up to `most` positions, among them the first: the largest bounds of the blocks with the largest."""
        block_H = np.argsort(-self._top_K, kind="stable")[:most]
        block_H = block_H[self._top_K[block_H] > 0]
        return block_H * WIDTH + self._bound_KW[block_H].argmax(axis=1)

    def lower(self, positions: np.ndarray, bound_H: np.ndarray | float) -> None:
        """Set the bounds of rows."""
        self._bound_KW.reshape(-1)[positions] = bound_H
        block_H = np.unique(positions // WIDTH)
        self._top_K[block_H] = self._bound_KW[block_H].max(axis=1)


def _total(gain_BC: np.ndarray) -> np.ndarray:
    # accumulate adds one column after the other, in a block of any size; sum would not.
    return np.add.accumulate(gain_BC, axis=1)[:, -1]
