"""Every task's rows from its best down, for selectors in which tasks choose one after the other.

Shape suffixes: N rows, G tasks.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from influray.protocols import AttributionSource
from influray.selectors.admission import Admission
from influray.selectors.normalisers import Normalised
from influray.selectors.task_scores import score_tasks


class TaskTurns:
    """The order in which each task wants the rows, and which task won a row; ties go to the lowest row.

    `tasks` are the indices of the tasks in turn: those whose score differs between rows, or all where none does.
    `winner_N` and `merit_N` hold the winning task and its score of the rows credited, -1 and NaN elsewhere. Memory:
    two numbers for each row and task.
    """

    def __init__(self, source: AttributionSource, normalised: Normalised, groups: Sequence[str], name: str) -> None:
        self._score_GN = score_tasks(source, normalised, groups, name)
        self._order_GN = np.argsort(-self._score_GN, axis=1, kind="stable")
        rows = self._score_GN.shape[1]
        spread_G = self._score_GN.max(axis=1) > self._score_GN.min(axis=1)
        self.tasks = np.flatnonzero(spread_G if spread_G.any() else ~spread_G).tolist()
        self._next_G = np.zeros(len(self._score_GN), np.int64)
        self._rows = rows
        self.winner_N = np.full(rows, -1)
        self.merit_N = np.full(rows, np.nan)

    def head(self, task: int) -> int | None:
        """Return the row that the task has come to, None past the last."""
        place = self._next_G[task]
        return int(self._order_GN[task, place]) if place < self._rows else None

    def step(self, task: int) -> None:
        """Move the task on to its next row."""
        self._next_G[task] += 1

    def take_best(self, task: int, admission: Admission, losing: bool = False) -> None:
        """Take the task's best row that is neither chosen nor refused, if there is one and the budget lasts.

        Where it is `losing` its turn, it takes none if its next row, of those not refused, is chosen already.
        """
        while not admission.full and (position := self.head(task)) is not None:
            self.step(task)
            if admission.open_N[position] and admission.take(position):
                self.credit(position, task)
                return
            if losing and self.winner_N[position] >= 0:
                return

    def force(self, admission: Admission) -> None:
        """Take the rows that must be in, each for the task for which it scores highest."""
        for position in admission.forced.tolist():
            admission.take(position)
            self.credit(position)

    def fill(self, admission: Admission, losing: bool = False) -> None:
        """Let the tasks take their best rows in turn until nothing more is to be chosen, and check the selection."""
        while not admission.full and admission.open_N.any():
            for task in self.tasks:
                self.take_best(task, admission, losing)
        admission.finish()

    def credit(self, position: int, task: int | None = None) -> None:
        """Note that a row is chosen by a task; None stands for the task for which it scores highest."""
        winner = int(self._score_GN[:, position].argmax()) if task is None else task
        self.winner_N[position] = winner
        self.merit_N[position] = self._score_GN[winner, position]
