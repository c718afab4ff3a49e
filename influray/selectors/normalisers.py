"""Column normalisers: what makes influence on different targets comparable.

Each maps the scores of a column upwards or leaves them equal, never past each other; the columns that take no part
are left out here.

Shape suffixes: N rows, T target columns, C columns in use, B rows.
"""

from __future__ import annotations

import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from influray.protocols import AttributionSource, ConfigError, DataError
from influray.selectors.columns import whole_columns
from influray.selectors.sorted_columns import SortedColumns
from influray.store.attribution import stats_of
from influray.store.moments import ColumnStats

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Normalised(ABC):
    """z of the columns in use, float64: a rising function of the score, times the weight of the column's task."""

    column_C: np.ndarray  # int64, ascending: which of the T columns are in use
    weight_C: np.ndarray  # > 0; below it for a mean or sum alone, where z falls as the score rises

    @abstractmethod
    def values(self, score: np.ndarray, place: Any) -> np.ndarray:
        """Return z of scores whose last axis belongs to the used columns at `place` (indices into C, or a slice).

        Also of a number that no row has: it is no less than the z of any score below; that of -inf is -inf.
        """

    def lines(self, score_BT: np.ndarray) -> np.ndarray:
        """Return z of whole lines of A, [B, C] float64."""
        if len(self.column_C) < score_BT.shape[-1]:
            score_BT = score_BT[..., self.column_C]
        return self.values(score_BT, slice(None))


@dataclass(frozen=True)
class Affine(Normalised):
    """z = (a - shift) / scale * weight."""

    shift_C: np.ndarray
    scale_C: np.ndarray  # > 0

    def values(self, score: np.ndarray, place: Any) -> np.ndarray:
        return (score.astype(np.float64) - self.shift_C[place]) / self.scale_C[place] * self.weight_C[place]


@dataclass(frozen=True)
class Ranked(Normalised):
    """z = the rank of a score within its column, 1 for the lowest, over the number of rows, times weight.

    Equal scores share the mean of their ranks.
    """

    sorted_CN: SortedColumns

    def values(self, score: np.ndarray, place: Any) -> np.ndarray:
        place_C = np.broadcast_to(np.arange(len(self.column_C))[place], score.shape[-1:] or 1)
        z_XC = self.sorted_CN.shares(place_C, np.atleast_1d(score)) * self.weight_C[place_C]
        return z_XC.reshape(score.shape)


def _none(source: AttributionSource, stats: ColumnStats, column_C: np.ndarray, weight_C: np.ndarray) -> Normalised:
    """The scores as they are. A constant column stays: it moves a mean over its task as in the published method."""
    return Affine(column_C, weight_C, np.zeros(len(column_C)), np.ones(len(column_C)))


def _zscore(source: AttributionSource, stats: ColumnStats, column_C: np.ndarray, weight_C: np.ndarray) -> Normalised:
    """Mean 0 and standard deviation 1 over the pool (ddof 0). Source: BIDS, arXiv 2501.12147."""
    return Affine(column_C, weight_C, stats.mean_T[column_C], stats.std_T[column_C])


def _robust(source: AttributionSource, stats: ColumnStats, column_C: np.ndarray, weight_C: np.ndarray) -> Normalised:
    """Median 0 and median absolute deviation 1 over the pool: a few huge scores move neither.

    The factor 1.4826 that makes the latter a standard deviation of normal scores is the same for all columns and
    changes no selection. A column with more than half of its scores equal has a deviation of 0 and is left out.
    """
    median_C, scale_C = np.empty(len(column_C)), np.empty(len(column_C))
    for place, score_N in whole_columns(source, column_C):
        score_N = score_N.astype(np.float64)
        median_C[place] = np.median(score_N) + 0.0  # one zero only
        scale_C[place] = np.median(np.abs(score_N - median_C[place]), overwrite_input=True)
    spread_C = scale_C > 0
    return Affine(column_C[spread_C], weight_C[spread_C], median_C[spread_C], scale_C[spread_C])


def _minmax(source: AttributionSource, stats: ColumnStats, column_C: np.ndarray, weight_C: np.ndarray) -> Normalised:
    """From 0 to 1 over the pool. Source: RDS+, arXiv 2503.01807 (normalized_mean of its code)."""
    low_C, high_C = np.full(len(column_C), np.inf), np.full(len(column_C), -np.inf)
    for _, block_BT in source.blocks():
        low_C = np.minimum(low_C, block_BT.min(axis=0)[column_C])
        high_C = np.maximum(high_C, block_BT.max(axis=0)[column_C])
    return Affine(column_C, weight_C, low_C, high_C - low_C)


def _rank(source: AttributionSource, stats: ColumnStats, column_C: np.ndarray, weight_C: np.ndarray) -> Normalised:
    """The share of the pool that a score is above, after BETR, arXiv 2507.12466: no tail is heavy.

    It keeps every column sorted: N x C scores in memory, or in a temporary file where they are too many.
    """
    return Ranked(column_C, weight_C, SortedColumns(source, column_C))


@dataclass(frozen=True)
class Normaliser:
    """`fit` of (source, stats, columns, their weights); it may leave out columns of those it is offered."""

    fit: Callable[[AttributionSource, ColumnStats, np.ndarray, np.ndarray], Normalised]
    constant: bool = False  # columns without spread take part
    needs: str = ""  # what a column that `fit` leaves out is


NormaliserName = Literal["none", "zscore", "robust", "rank", "minmax"]
NORMALISERS: dict[NormaliserName, Normaliser] = {
    "none": Normaliser(_none, constant=True),
    "zscore": Normaliser(_zscore),
    "robust": Normaliser(_robust, needs="equal in more than half of its scores"),
    "rank": Normaliser(_rank),
    "minmax": Normaliser(_minmax),
}


TaskWeights = Mapping[str, float]  # task -> factor


def checked_weights(task_weights: TaskWeights | None, signed: bool = False) -> dict[str, float]:
    """Return the weights of tasks as they are given. Raises ConfigError for 0, and below it where not `signed`."""
    for task, weight in (task_weights or {}).items():
        if weight == 0 or (weight < 0 and not signed):
            raise ConfigError(
                f"options.task_weights.{task}: found {weight:g}, expected a number {'but 0' if signed else 'above 0'}; "
                f"to stay away from a task, or to keep what it stands for, give it a role in place of a weight: "
                f"data.targets.{task}.role: avoid, or protect (roles={{{task!r}: 'avoid'}} in Python)"
            )
    return dict(task_weights or {})


def normalise(
    name: NormaliserName, source: AttributionSource, groups: Sequence[str], task_weights: Mapping[str, float]
) -> Normalised:
    """Return the normalisation of a matrix; `task_weights` scale its columns by task, 1 where a task has none.

    A column that only this normaliser cannot use is logged.

    Raises:
        ConfigError: a weight for a task that no column has.
        DataError: no column can be used, or a row has no finite score.
    """
    strange = sorted(set(task_weights) - set(groups))
    if strange:
        raise ConfigError(
            f"options.task_weights: no column has the task {strange[0]!r} (known: {', '.join(dict.fromkeys(groups))})"
        )
    stats = stats_of(source)
    normaliser = NORMALISERS[name]
    column_C = np.flatnonzero(stats.finite if normaliser.constant else stats.used_T)
    weight_T = np.array([task_weights.get(group, 1.0) for group in groups], np.float64)
    reasons = set(stats.left_out().values())
    if len(column_C):
        normalised = normaliser.fit(source, stats, column_C, weight_T[column_C])
        lost_C = np.setdiff1d(column_C, normalised.column_C)
        if len(lost_C):
            logger.warning(
                "%d of %d columns take no part, the first is %d of task %s: %s, which %s cannot scale",
                *(len(lost_C), len(groups), lost_C[0], groups[lost_C[0]], normaliser.needs, name),
            )
        if len(normalised.column_C):
            return normalised
        reasons.add(normaliser.needs)
    raise DataError(
        f"attribution: none of the {len(groups)} columns can be used with normaliser {name!r}, all are "
        f"{' or '.join(sorted(reasons))} over the {source.shape[0]} rows; check the targets and the pool"
    )


def row_tasks(source: AttributionSource, groups: Sequence[str]) -> list[str]:
    """Return the task of every row of the matrix: that of its highest standardised column, as THI by instance counts.

    Ties go to the lowest column. One pass. Raises DataError where no column can be standardised.
    """
    normalised = normalise("zscore", source, groups, {})
    tasks = [groups[j] for j in normalised.column_C]
    return [tasks[place] for _, block in source.blocks() for place in normalised.lines(block).argmax(axis=1).tolist()]
