"""Column normalisers: what makes influence on different targets comparable.

Each is a shift and a positive scale per column; the columns that take no part are left out here.

Shape suffixes: T target columns, C columns in use, B rows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.protocols import AttributionSource, ConfigError, DataError
from influray.selectors.options import look_up
from influray.store.attribution import stats_of
from influray.store.moments import ColumnStats


@dataclass(frozen=True)
class Normalised:
    """z = (a - shift) / scale * weight over the columns in use, in float64."""

    column_C: np.ndarray  # int64, ascending: which of the T columns are in use
    shift_C: np.ndarray
    scale_C: np.ndarray  # > 0
    weight_C: np.ndarray  # > 0

    def values(self, score: np.ndarray, place: Any) -> np.ndarray:
        """Return z of scores that belong to the used columns at `place` (indices into C, or a slice)."""
        return (score.astype(np.float64) - self.shift_C[place]) / self.scale_C[place] * self.weight_C[place]

    def lines(self, score_BT: np.ndarray) -> np.ndarray:
        """Return z of whole lines of A, [B, C] float64."""
        if len(self.column_C) < score_BT.shape[-1]:
            score_BT = score_BT[..., self.column_C]
        return self.values(score_BT, slice(None))


def _none(stats: ColumnStats) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The scores as they are. A constant column stays: it moves a mean over its task as in the published method."""
    return stats.finite, np.zeros_like(stats.mean_T), np.ones_like(stats.mean_T)


def _zscore(stats: ColumnStats) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Mean 0 and standard deviation 1 over the pool (ddof 0). Source: BIDS, arXiv 2501.12147."""
    return stats.used_T, stats.mean_T, stats.std_T


# name -> stats -> (used_T, shift_T, scale_T)
NORMALISERS: dict[str, Callable[[ColumnStats], tuple[np.ndarray, np.ndarray, np.ndarray]]] = {
    "none": _none,
    "zscore": _zscore,
}


def normalise(
    name: str, source: AttributionSource, groups: Sequence[str], task_weights: Mapping[str, float]
) -> Normalised:
    """Return the normalisation of a matrix; `task_weights` scale its columns by task, 1 where a task has none.

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
    used_T, shift_T, scale_T = look_up(NORMALISERS, name, "options.normaliser", "normaliser")(stats)
    column_C = np.flatnonzero(used_T)
    if not len(column_C):
        why = sorted(set(stats.left_out().values()))
        raise DataError(
            f"attribution: none of the {len(used_T)} columns can be used with normaliser {name!r}, all are "
            f"{' or '.join(why)} over the {source.shape[0]} rows; check the targets and the pool"
        )
    weight_T = np.array([task_weights.get(group, 1.0) for group in groups], np.float64)
    return Normalised(column_C, shift_T[column_C], scale_T[column_C], weight_T[column_C])
