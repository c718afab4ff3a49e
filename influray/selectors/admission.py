"""Who may still be chosen: the budget, and the limits that a selection must keep to.

A selector proposes rows in its own order of preference; an Admission takes each one or bars it for good. What is
barred once would never have become possible later, so no selector ever has to look back.

Shape suffixes: N rows of the matrix.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from influray.protocols import Selection, SelectionProblem


class Admission:
    """The state of one selection. Rows are positions 0..N-1 in the order of the matrix.

    `open_N[p]`: p is neither chosen nor barred. `forced` are the rows that must be in, ascending; a selector takes
    them first. `full`: nothing more is to be chosen.
    """

    def __init__(self, problem: SelectionProblem) -> None:
        self._budget = problem.budget
        self.open_N = np.ones(problem.attribution.shape[0], bool)
        self.forced = np.zeros(0, np.int64)
        self._chosen: list[int] = []
        self._barred: list[np.ndarray] = []

    @property
    def chosen(self) -> np.ndarray:
        """The positions taken so far, in order, int64."""
        return np.array(self._chosen, np.int64)

    @property
    def full(self) -> bool:
        return len(self._chosen) == self._budget

    @property
    def expected(self) -> int:
        """About how many rows the whole selection will hold; never fewer than are chosen."""
        return self._budget

    def take(self, position: int) -> bool:
        """Choose an open row and return True; or bar it and return False."""
        assert self.open_N[position], "a row is proposed once"
        assert not self.full, "nothing more is to be chosen"
        self.open_N[position] = False
        self._chosen.append(position)
        return True

    def newly_barred(self) -> np.ndarray:
        """Return the positions barred since the last call, also those of which none was proposed."""
        barred = np.concatenate([np.zeros(0, np.int64), *self._barred])
        self._barred.clear()
        return barred

    def finish(self) -> None:
        """Check that the selection is complete.

        Raises:
            ConfigError: it is not, and which limit is the reason.
        """
        assert self.full, "the selector stopped before the budget was spent"


def take_in_order(admission: Admission, order: Iterable[int] | np.ndarray) -> np.ndarray:
    """Take the forced rows, then those of `order` (positions; a repeated one counts once) until the budget is spent.

    Returns the positions chosen, in order. Raises as `Admission.finish`.
    """
    for position in admission.forced.tolist():
        admission.take(position)
    for position in order.tolist() if isinstance(order, np.ndarray) else order:
        if admission.full:
            break
        if admission.open_N[position]:
            admission.take(position)
    admission.finish()
    return admission.chosen


def as_selection(
    problem: SelectionProblem, positions: np.ndarray, merit_N: np.ndarray | None, column_N: np.ndarray | None
) -> Selection:
    """Return the selection of these positions with the merit and winning column that each row of the matrix has.

    None stands for a method that has none: NaN and -1.
    """
    n = len(positions)
    return Selection(
        problem.attribution.rows[positions],
        np.full(n, np.nan) if merit_N is None else np.asarray(merit_N, np.float64)[positions],
        np.full(n, -1, np.int64) if column_N is None else np.asarray(column_N, np.int64)[positions],
    )
