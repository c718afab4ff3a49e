"""Round robin: target examples, or tasks, take turns; each takes its best row that is not taken yet.

Shape suffixes: N rows, G tasks, C columns in use.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from influray.protocols import ConfigError, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission, as_selection
from influray.selectors.heads import Heads
from influray.selectors.normalisers import Normalised, NormaliserName, normalise
from influray.selectors.task_scores import TaskScore, members
from influray.selectors.task_turns import TaskTurns

GATHERED_ROWS = 4096  # at a time


class RoundRobin(Selector):
    """One row per turn, in the order of the columns, or of each task's first column; ties go to the lowest row.

    `merit` is the row's z, or its score for the task, and `column` the column that took it: of a task's, the highest
    where `task_score` is max, else -1. A row that a limit refuses does not cost the turn. A smaller budget gives a
    prefix. Columns that are left out, and tasks for which all rows score the same, have no turn.

    Args:
        over: instances or tasks.
        normaliser: zscore, robust, rank, minmax or none. Over instances it decides only which columns take part.
        task_score: max or mean over the task's columns; with normaliser minmax the latter is RDS+'s normalized_mean.
        taken: what becomes of a task whose best row is chosen already: it takes its "next" one, or it has "lost" its
            turn, as in hamishivi/automated-instruction-selection get_top_aggregated_influences.py. Over tasks alone.

    Source: over instances RR of arXiv 2602.14696, over tasks RDS+, arXiv 2503.01807; there on cosines of hidden
    states, here on any attribution matrix.
    """

    def __init__(
        self,
        over: Literal["instances", "tasks"] = "instances",
        normaliser: NormaliserName = "zscore",
        task_score: TaskScore = "max",
        taken: Literal["next", "lost"] = "next",
    ) -> None:
        if over == "instances" and taken == "lost":
            raise ConfigError("options.taken: only tasks can lose a turn; set options.over: tasks, or taken: next")
        self._over, self._losing = over, taken == "lost"
        self._normaliser: NormaliserName = normaliser
        self._task_score: TaskScore = task_score

    def select(self, problem: SelectionProblem) -> Selection:
        normalised = normalise(self._normaliser, problem.attribution, problem.groups, {})
        if self._over == "instances":
            return _over_instances(problem, normalised)
        return _over_tasks(problem, normalised, self._task_score, self._losing)


def _over_instances(problem: SelectionProblem, normalised: Normalised) -> Selection:
    source, rows = problem.attribution, problem.attribution.rows
    columns = len(normalised.column_C)
    admission = Admission(problem)
    heads = Heads(source, normalised, "turns", admission.expect)
    merit: list[float] = []
    place: list[int] = []
    for position in admission.forced.tolist():
        z_C = heads.line(position)
        admission.take(position)
        merit.append(float(z_C.max()))
        place.append(int(z_C.argmax()))
    heads.remove(admission.forced)
    heads.remove(admission.newly_barred())
    waiting_C = np.full(columns, np.inf)  # a column that is not at turn can have no largest difference
    turn = 0
    while not admission.full and heads.left:
        waiting_C[turn] = 0.0
        position, _, z = heads.best(waiting_C, len(merit), max(1, admission.expected - len(merit)))
        if admission.take(position):
            heads.remove(np.array([position]))
            merit.append(z)
            place.append(turn)
            waiting_C[turn] = np.inf
            turn = (turn + 1) % columns
        heads.remove(admission.newly_barred())
    admission.finish()
    return Selection(rows[admission.chosen], np.array(merit), normalised.column_C[place])


def _over_tasks(problem: SelectionProblem, normalised: Normalised, task_score: str, losing: bool) -> Selection:
    source, rows = problem.attribution, problem.attribution.rows
    groups = [problem.groups[j] for j in normalised.column_C]
    admission = Admission(problem)
    turns = TaskTurns(source, normalised, groups, task_score)
    turns.force(admission)
    turns.fill(admission, losing)
    chosen = admission.chosen
    column_N = np.full(len(rows), -1)
    if task_score == "max":
        places = list(members(groups).values())
        for start in range(0, len(chosen), GATHERED_ROWS):
            position_B = chosen[start : start + GATHERED_ROWS]
            z_BC = normalised.lines(source.gather(rows[position_B]))
            for position, z_C in zip(position_B.tolist(), z_BC, strict=True):
                place = places[turns.winner_N[position]]
                column_N[position] = normalised.column_C[place[int(z_C[place].argmax())]]
    return as_selection(problem, chosen, turns.merit_N, column_N)
