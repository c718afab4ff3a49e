"""Interaction: a row's mean influence on the targets, less what the rows chosen so far have done for each already.

Shape suffixes: N rows, T target columns, C columns in use or tasks that have one, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from influray.protocols import AttributionSource, ConfigError, Selection, SelectionProblem, Selector
from influray.selectors.admission import Admission
from influray.selectors.normalisers import Normalised, NormaliserName, TaskWeights, checked_weights, normalise
from influray.selectors.task_scores import members, task_means

STRENGTH = 0.5
PROGRESS_ROWS = 64  # chosen between two reports
FIRST_ROWS = 32  # looked up at once, twice as many each time
PATIENCE = 4  # a pass over all N rows takes as long as N / PATIENCE rows looked up, or less
ROUNDING = 2.0**-50  # of a product, for each of its columns


class Interaction(Selector):
    """argmax over rows not chosen of mean over j of Z[i, j] * (1 - eta * sum over the chosen of Z[k, j]), repeated.

    A step on row k takes from what is left to do for target j what it helps it by, so that a row counts there by what
    is left: by less where the chosen rows help, by more where they harm, and against itself where more was done than
    there was to do. `merit` is the mean when the row was chosen, `column` the column that adds most to it (of
    over: tasks the one of largest z of the task that does), the lowest of equals. Ties go to the lowest row.

    With eta: auto no unit matters: eta is `strength` over the sum of the means Z[i, :] above 0 of the budget's best
    rows. No rows of the budget's number sum to more, so that of an average target 1 - strength or more is left at the
    end, whichever rows are chosen. Such an eta belongs to the budget, and a smaller one gives no prefix; with a number
    it does. Where no mean is above 0, eta: auto is 0.

    Args:
        normaliser: none, the scores as they are; zscore, robust, rank or minmax.
        over: targets, or tasks: the columns are the means over each task's, and every task counts alike.
        eta: the step, in units of 1 / Z; auto.
        strength: of eta: auto; 0 is the order by mean, above 1 targets may be overdone on average.
        task_weights: task -> factor on its part of the mean, 1 where not given; not on what is left to do.

    Cost: a bound per row is compared at each pick, and whole lines are read of those that may be best: <A_i, u> moves
    by |A_i| |change of u| at most (Cauchy-Schwarz), where u are the factors of the columns. Hence exact, with work
    linear in N for a budget of a fixed number of rows, quadratic, but of few operations a row, for a fraction of N.

    Source: the interaction term of arXiv 2605.15675, with the curvature H taken to be the mean over targets of v_j v_j'
    so that the matrix alone suffices: <g_i, H g_k> = mean of A[i, j] A[k, j]. That is ours, and so is eta: auto. What a
    row does to its own gain, eta / 2 of its mean square, is left out.
    """

    def __init__(
        self,
        normaliser: NormaliserName = "none",
        over: Literal["targets", "tasks"] = "targets",
        eta: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto",
        strength: Annotated[float, Field(ge=0)] = STRENGTH,
        task_weights: TaskWeights | None = None,
    ) -> None:
        if eta != "auto" and strength != STRENGTH:
            raise ConfigError(
                f"options.strength: {strength:g} is a part of the step that eta: auto takes, and eta is {eta:g}; "
                "give one of the two"
            )
        self._normaliser: NormaliserName = normaliser
        self._over, self._eta, self._strength = over, eta, strength
        self._task_weights = checked_weights(task_weights)

    def select(self, problem: SelectionProblem) -> Selection:
        source, rows = problem.attribution, problem.attribution.rows
        normalised = normalise(self._normaliser, source, problem.groups, self._task_weights)
        lines = _Lines(source, normalised, problem.groups if self._over == "tasks" else None)
        admission = Admission(problem)
        gains = _Gains(lines)
        eta = self._step(gains.score_N, admission.expected) if isinstance(self._eta, str) else self._eta
        done_C = np.zeros(lines.width)
        merit: list[float] = []
        column: list[int] = []

        def chosen(position: int) -> None:
            line_C = lines.at(np.array([position]))[0]
            part_C = line_C * gains.factor_C
            merit.append(float(_total(part_C[None])[0]))
            column.append(lines.winner(position, part_C))
            done_C[:] += line_C / lines.weight_C
            gains.move((1 - eta * done_C) / lines.width)

        for position in admission.forced.tolist():
            admission.take(position)
            chosen(position)
        while not admission.full and admission.left:
            position = gains.best(admission.open_N)
            if admission.take(position):
                chosen(position)
            if not len(merit) % PROGRESS_ROWS:
                problem.on_progress(len(merit), admission.expected)
        admission.finish()
        return Selection(rows[admission.chosen], np.array(merit), np.array(column, np.int64))

    def _step(self, mean_N: np.ndarray, budget: int) -> float:
        """Return eta: auto for a budget, by the means of all rows."""
        falling = np.sort(np.partition(mean_N, len(mean_N) - budget)[-budget:])[::-1]
        most = float(np.add.accumulate(np.maximum(falling, 0))[-1])
        return self._strength / most if most > 0 else 0.0


class _Lines:
    """Lines of z: a number for every column in use, or for every task of `groups`, where they are given."""

    def __init__(self, source: AttributionSource, normalised: Normalised, groups: tuple[str, ...] | None) -> None:
        self._source, self._normalised = source, normalised
        self._groups = None if groups is None else [groups[j] for j in normalised.column_C]
        self._places = None if self._groups is None else list(members(self._groups).values())
        weight_C = normalised.weight_C
        self.weight_C = weight_C if self._places is None else np.array([weight_C[one[0]] for one in self._places])
        self.width, self.rows = len(self.weight_C), source.shape[0]

    def blocks(self) -> Iterator[np.ndarray]:
        """Yield the lines of all rows, [B, C], in order."""
        for _, block_BT in self._source.blocks():
            yield self._of(block_BT)

    def at(self, positions: np.ndarray) -> np.ndarray:
        """Return the lines of these rows, [B, C]."""
        return self._of(self._source.gather(self._source.rows[positions]))

    def winner(self, position: int, part_C: np.ndarray) -> int:
        """Return the column of the matrix that stands for the largest part of a row's gain."""
        place = int(part_C.argmax())
        if self._places is not None:
            z_1C = self._normalised.lines(self._source.gather(self._source.rows[position : position + 1]))
            within = self._places[place]
            place = within[int(z_1C[0, within].argmax())]
        return int(self._normalised.column_C[place])

    def _of(self, score_BT: np.ndarray) -> np.ndarray:
        z_BC = self._normalised.lines(score_BT)
        return z_BC if self._groups is None else task_means(np.ascontiguousarray(z_BC.T), self._groups).T


class _Gains:
    """The row of largest <line, factor>, as the factor moves: bounds of all rows, products of those that may be best.

    `score_N` is the product when a row was last looked at; the way that the factor has gone since bounds what it is.
    """

    def __init__(self, lines: _Lines) -> None:
        self._lines = lines
        self.factor_C = np.full(lines.width, 1 / lines.width)
        found = [(_total(line_BC * self.factor_C), _norms(line_BC)) for line_BC in lines.blocks()]
        self.score_N, self._norm_N = (np.concatenate(arrays) for arrays in zip(*found, strict=True))
        self._seen_N, self._way, self._slack = np.zeros(lines.rows), 0.0, 0.0
        self._allow(self.factor_C)

    def move(self, factor_C: np.ndarray) -> None:
        """Take another factor."""
        self._way += float(_norms((factor_C - self.factor_C)[None])[0]) * (1 + 1e-9)  # no less than it is, rounded
        self.factor_C = factor_C
        self._allow(factor_C)

    def best(self, open_N: np.ndarray) -> int:
        """Return the open row of the largest product, the lowest of equals."""
        bound_N = self.score_N + self._norm_N * (self._way - self._seen_N + self._slack)
        fresh_N = open_N & (self._seen_N == self._way)
        many, best = FIRST_ROWS, self.score_N[fresh_N].max(initial=-np.inf)
        while len(stale := np.flatnonzero((bound_N >= best) & open_N & ~fresh_N)):
            if many > max(FIRST_ROWS, len(open_N) // PATIENCE):
                self.score_N = np.concatenate([_total(line_BC * self.factor_C) for line_BC in self._lines.blocks()])
                self._seen_N[:] = self._way
                fresh_N = open_N
                break
            if len(stale) > many:
                stale = np.sort(stale[np.argpartition(bound_N[stale], len(stale) - many)[-many:]])
            self.score_N[stale] = _total(self._lines.at(stale) * self.factor_C)
            self._seen_N[stale], fresh_N[stale] = self._way, True
            best, many = max(best, float(self.score_N[stale].max())), 2 * many
        return int(np.where(fresh_N, self.score_N, -np.inf).argmax())

    def _allow(self, factor_C: np.ndarray) -> None:
        """Allow for the rounding of products with this factor, and with all before it."""
        length = float(_norms(factor_C[None])[0])
        self._slack = max(self._slack, ROUNDING * (len(factor_C) + 4) * length)


def _total(part_BC: np.ndarray) -> np.ndarray:
    # accumulate adds one column after the other, in a block of any size; sum would not.
    return np.add.accumulate(part_BC, axis=1)[:, -1]


def _norms(line_BC: np.ndarray) -> np.ndarray:
    peak_B1 = np.abs(line_BC).max(axis=1, keepdims=True)  # squares of the rest neither overflow nor vanish
    scaled_BC = line_BC / np.where(peak_B1 > 0, peak_B1, 1)
    return peak_B1[:, 0] * np.sqrt((scaled_BC * scaled_BC).sum(axis=1))
