"""Row reductions: the normalised scores of a row -> one merit, and the column that won it where one does.

Some need the row alone; others count places within a column or task over the whole pool.

Shape suffixes: N rows, G tasks, C columns in use, B rows of one block.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from influray.options import check_options
from influray.protocols import SelectionProblem
from influray.selectors.columns import falling_ranks, whole_columns
from influray.selectors.nearest_lists import assigned_mass, densities, nearest_lists
from influray.selectors.normalisers import Normalised, NormaliserName, TaskWeights, checked_weights, normalise
from influray.selectors.row_facts import features_of
from influray.selectors.task_scores import members, score_tasks, task_means, total
from influray.store.moments import column_moments, column_stats


@dataclass(frozen=True)
class Reduced:
    """What each row of the matrix is worth. `tie_N` orders rows of equal merit, the larger first, where it is known."""

    merit_N: np.ndarray  # float64
    column_N: np.ndarray  # int64, -1 where no column wins
    tie_N: np.ndarray | None = None

    def order(self) -> np.ndarray:
        """Return the positions of all rows, best first; what is equal throughout by ascending row."""
        if self.tie_N is None:
            return np.argsort(-self.merit_N, kind="stable")
        return np.lexsort((-self.tie_N, -self.merit_N))


# (problem, the normalisation of its matrix, task of each column in use) -> merits, with places in C for columns
Reduction = Callable[[SelectionProblem, Normalised, Sequence[str]], Reduced]


def _row_by_row(
    function: Callable[[np.ndarray, Sequence[str]], tuple[np.ndarray, np.ndarray | None]],
    problem: SelectionProblem,
    normalised: Normalised,
    groups: Sequence[str],
) -> Reduced:
    merits, places = [], []
    for _, block_BT in problem.attribution.blocks():
        merit_B, place_B = function(np.ascontiguousarray(normalised.lines(block_BT).T), groups)
        merits.append(merit_B)
        places.append(np.full(len(merit_B), -1) if place_B is None else place_B)
    return Reduced(np.concatenate(merits), np.concatenate(places))


def _sum(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, None]:
    return total(score_CB), None


def _mean(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, None]:
    return total(score_CB) / len(score_CB), None


def _instance_max(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """The highest column, the lowest of equals. Source: BIDS, arXiv 2501.12147, appendix A.3."""
    column_B = score_CB.argmax(axis=0)
    return score_CB[column_B, np.arange(score_CB.shape[1])], column_B


def _group_mean_max(score_CB: np.ndarray, groups: Sequence[str]) -> tuple[np.ndarray, None]:
    """The highest mean over a task's columns.

    Source: LESS, arXiv 2402.04333; princeton-nlp/LESS matching.py. There a reshape, for tasks of equal size in
    one piece; here by name, so that sizes may differ and columns stand in any order.
    """
    return task_means(score_CB, groups).max(axis=0), None


class _Votes:
    """The number of tasks for which a row's mean is among the highest `top_share`, each counted by its weight.

    Most rows have equal votes at the cut. There the mean over tasks of the standardised task means decides.

    `top_share` budget is the part of the rows, or of the tokens, that the budget asks for: then a smaller budget gives
    no prefix.

    Source: ICONS, arXiv 2501.00654, a fifth; princetonvisualai/icons generalist.py, the budget. A mean equal to the
    percentile has the vote, as there; its ties fall as an unstable sort leaves them.
    """

    def __init__(self, top_share: Annotated[float, Field(gt=0, le=1)] | Literal["budget"] = 0.2) -> None:
        self._top_share: float | Literal["budget"] = top_share

    def __call__(self, problem: SelectionProblem, normalised: Normalised, groups: Sequence[str]) -> Reduced:
        top_share = _budget_share(problem) if self._top_share == "budget" else self._top_share
        source = problem.attribution
        mean_GN = score_tasks(source, normalised, groups, "mean")
        weight_G = _task_weights(normalised, groups)
        stats = column_stats(column_moments([(source.rows, mean_GN.T)]))
        vote_N, tie_N = np.zeros(mean_GN.shape[1]), np.zeros(mean_GN.shape[1])
        for g, mean_N in enumerate(mean_GN):
            vote_N += weight_G[g] * (mean_N >= np.percentile(mean_N, 100 * (1 - top_share)))
            if stats.used_T[g]:
                tie_N += weight_G[g] * ((mean_N - stats.mean_T[g]) / stats.std_T[g])
        return Reduced(vote_N, np.full(len(vote_N), -1), tie_N / len(mean_GN))


def _reciprocal_rank(problem: SelectionProblem, normalised: Normalised, groups: Sequence[str]) -> Reduced:
    """The sum over tasks of weight / the row's place by its mean for the task; equal means share their mean place.

    Source: CROPI, arXiv 2510.26491; thu-coai. There one target vector a set where this has the mean over the set's
    columns, and places beyond the budget count nothing; here all count, so that a budget extends a smaller one.
    """
    source, weight_G = problem.attribution, _task_weights(normalised, groups)
    merit_N = np.zeros(source.shape[0])
    for weight, mean_N in zip(weight_G, score_tasks(source, normalised, groups, "mean"), strict=True):
        merit_N += weight / falling_ranks(mean_N)
    return Reduced(merit_N, np.full(len(merit_N), -1))


def _best_rank(problem: SelectionProblem, normalised: Normalised, groups: Sequence[str]) -> Reduced:
    """The largest over columns of weight / the row's place in the column; equal scores share their mean place.

    As many rows as columns come first somewhere: of equal merits the larger sum over all columns goes first. It
    reads and sorts every column whole, some at a time.

    Source: BETR, arXiv 2507.12466, the best rank (max). There the labels of a classifier that scores the pool,
    ranked by embeddings; here the rows are ranked by influence and taken as they stand.
    """
    source = problem.attribution
    merit_N, tie_N = np.zeros(source.shape[0]), np.zeros(source.shape[0])
    place_N = np.zeros(source.shape[0], np.int64)
    for place, score_N in whole_columns(source, normalised.column_C):
        value_N = normalised.weight_C[place] / falling_ranks(score_N)
        tie_N += value_N
        better_N = value_N > merit_N
        merit_N[better_N], place_N[better_N] = value_N[better_N], place
    return Reduced(merit_N, place_N, tie_N)


class _Transport:
    """The log of the mean over columns of exp(z / temperature) over its sum in the column; a column weighs as its task.

    The mass that optimal transport brings to a row where every target has one unit to spend, each by itself. It reads
    every column whole, some at a time.

    Source: UOT of arXiv 2602.14696; dcml-lab/targeted-instruction-selection uot.py: costs (1 - cosine) / 2, entropic
    weight 0.01, a hard marginal of the targets, and one of the pool with weight 1e-4. A pool's marginal as loose as
    that changes hardly anything, so the plan is this softmax, and no iteration is needed. `temperature` is in units of
    the normalised scores, 2 * 0.01 for cosines.
    """

    def __init__(self, temperature: Annotated[float, Field(gt=0)] = 0.02) -> None:
        self._temperature = temperature

    def __call__(self, problem: SelectionProblem, normalised: Normalised, groups: Sequence[str]) -> Reduced:
        rows = problem.attribution.shape[0]
        log_N, best_N, place_N = np.full(rows, -np.inf), np.full(rows, -np.inf), np.zeros(rows, np.int64)
        weight_C = normalised.weight_C
        for place, score_N in whole_columns(problem.attribution, normalised.column_C):
            share_N = normalised.values(score_N[:, None], [place])[:, 0] / (weight_C[place] * self._temperature)
            share_N -= share_N.max()  # before exp, which knows no number above exp(709)
            share_N += np.log(weight_C[place]) - np.log(np.exp(share_N).sum())
            log_N = np.logaddexp(log_N, share_N)
            better_N = share_N > best_N
            best_N[better_N], place_N[better_N] = share_N[better_N], place
        return Reduced(log_N - np.log(weight_C.sum()), place_N)


class _Neighbours:
    """The share of the targets' mass that a row receives where each target spreads its own over its nearest rows alike.

    That is, the share of the columns that have the row among their K best. K grows from 1 while the mean over columns
    of the sum over those K of (z - z of the next row) is below (1 - alpha) / alpha * `scale`, up to `neighbours` and a
    tenth of the rows. Of equal shares, and of rows without any, the one with the highest z in some column goes first.

    Source: KNN-Uniform of TSDS, arXiv 2410.11303, as arXiv 2602.14696 has it (dcml-lab/targeted-instruction-selection
    tsds_subset.py), whose numbers are the defaults, for cosines: distances are 1 - z. There rows of one share stand in
    the order of the pool, and no tenth bounds the lists.
    """

    def __init__(
        self,
        neighbours: Annotated[int, Field(ge=1)] = 5000,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01,
        scale: Annotated[float, Field(gt=0)] = 5.0,
    ) -> None:
        self._neighbours, self._alpha, self._scale = neighbours, alpha, scale

    def __call__(self, problem: SelectionProblem, normalised: Normalised, groups: Sequence[str]) -> Reduced:
        lists = nearest_lists(problem.attribution, normalised, self._neighbours)
        capacity_N = self._capacities(problem, np.unique(lists.position_CL))
        mass_N = assigned_mass(lists, capacity_N, normalised.weight_C, self._alpha, self._scale)
        return Reduced(mass_N, lists.place_N, lists.best_N)

    def _capacities(self, problem: SelectionProblem, position_U: np.ndarray) -> np.ndarray:
        return np.ones(problem.attribution.shape[0])


class _NeighboursByDensity(_Neighbours):
    """As neighbours, but a row takes in 1 / density of what it would: copies share what one row had.

    The density of a row is the sum over the listed rows of max(0, 1 - |u - v|^2 / sigma^2), u and v unit feature rows:
    1 for a row far from all others. It takes the features of the pool, and time quadratic in the rows that stand in
    some column's list; distances are those of sketches.

    Source: KNN-KDE of TSDS, as neighbours. There the 1,000 nearest rows alone count, and what full lists cannot hold
    goes to the last row of each; here to none.
    """

    needs_features = True

    def __init__(
        self,
        neighbours: Annotated[int, Field(ge=1)] = 5000,
        alpha: Annotated[float, Field(gt=0, lt=1)] = 0.01,
        scale: Annotated[float, Field(gt=0)] = 5.0,
        sigma: Annotated[float, Field(gt=0)] = 0.75,
    ) -> None:
        super().__init__(neighbours, alpha, scale)
        self._sigma = sigma

    def _capacities(self, problem: SelectionProblem, position_U: np.ndarray) -> np.ndarray:
        capacity_N = super()._capacities(problem, position_U)
        row_U = problem.attribution.rows[position_U]
        capacity_N[position_U] = 1 / densities(features_of(problem, "knn_kde"), row_U, self._sigma)
        return capacity_N


def _task_weights(normalised: Normalised, groups: Sequence[str]) -> list[float]:
    return [float(normalised.weight_C[places[0]]) for places in members(groups).values()]


ReductionName = Literal[
    "group_mean_max",
    "instance_max",
    "mean",
    "sum",
    "votes",
    "reciprocal_rank",
    "best_rank",
    "transport",
    "neighbours",
    "neighbours_by_density",
]
# name -> a maker of the reduction, whose parameters are its options
REDUCTIONS: dict[ReductionName, Callable[..., Reduction]] = {
    "group_mean_max": lambda: partial(_row_by_row, _group_mean_max),
    "instance_max": lambda: partial(_row_by_row, _instance_max),
    "mean": lambda: partial(_row_by_row, _mean),
    "sum": lambda: partial(_row_by_row, _sum),
    "votes": _Votes,
    "reciprocal_rank": lambda: _reciprocal_rank,
    "best_rank": lambda: _best_rank,
    "transport": _Transport,
    "neighbours": _Neighbours,
    "neighbours_by_density": _NeighboursByDensity,
}


LINEAR: tuple[ReductionName, ...] = ("mean", "sum")  # of these a task may take away: its weight may be below 0


class RowMerit:
    """The options of every selector that works on one number per row, and those numbers.

    `needs_features`: the reduction looks at the features of the rows.

    Raises:
        ConfigError: an option of the reduction that is wrong, or a weight below 0 for one that is not LINEAR.
    """

    def __init__(
        self,
        normaliser: NormaliserName,
        reduction: ReductionName,
        reduction_options: Mapping[str, Any] | None,
        task_weights: TaskWeights | None,
    ) -> None:
        maker, given = REDUCTIONS[reduction], reduction_options or {}
        self._reduce = maker(**check_options(maker, reduction, "options.reduction_options", (), given))
        self.needs_features: bool = getattr(self._reduce, "needs_features", False)
        self._normaliser: NormaliserName = normaliser
        self._task_weights = checked_weights(task_weights, signed=reduction in LINEAR)

    def of(self, problem: SelectionProblem) -> Reduced:
        """Return the merits of a problem's rows, with columns of its matrix. Raises as `normalise`."""
        normalised = normalise(self._normaliser, problem.attribution, problem.groups, self._task_weights)
        found = self._reduce(problem, normalised, [problem.groups[j] for j in normalised.column_C])
        column_N = np.where(found.column_N < 0, -1, normalised.column_C[found.column_N])
        return Reduced(found.merit_N, column_N, found.tie_N)


def _budget_share(problem: SelectionProblem) -> float:
    """Return which part of the rows, or of their tokens, the budget asks for."""
    if problem.limits.tokens is None:
        return problem.budget / problem.attribution.shape[0]
    return min(1.0, problem.limits.tokens / max(1, int(np.sum(problem.facts.get("tokens", 0), dtype=np.int64))))
