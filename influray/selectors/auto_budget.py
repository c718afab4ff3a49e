"""A budget that chooses itself: the nearest rows of some targets, as many as are closest to the others (TAROT's OTM).

Shape suffixes: T target columns, C columns in use, F of them in a fold, V in the other folds, L rows listed of each
column, U rows of a fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import threadpoolctl

from influray.protocols import AttributionSource, ConfigError, DataError
from influray.selectors.nearest_lists import nearest_lists
from influray.selectors.normalisers import normalise
from influray.selectors.optimal_transport import transport
from influray.selectors.task_scores import members

SMOOTHING = 0.05  # of the standard deviation of a fold's first distances
NEAREST = 2000  # rows of a target that are looked at, and a tenth of the pool at most
PATIENCE = 4  # times the best k so far, up to which a lower distance is looked for
FINE = 8  # k up to which every one is tried; then it grows by one part in so many
CELLS = 2**22  # of the distances between a fold's rows and the other targets, 32 MiB: where they end, k does
ROUNDING = 1e-3  # by which a cosine of stored float16 rows may be above 1


@dataclass(frozen=True)
class FoldBudget:
    """What a fold came to: its targets' `k` nearest rows, of which there are `rows`, at this distance to the others."""

    targets: int
    k: int  # 0 where no row has a score above 0
    rows: int
    distance: float | None


@dataclass(frozen=True)
class AutoChoice:
    """The number of rows, how it was found, and whether it would have been more without `most`."""

    rows: int
    most: int
    folds: tuple[FoldBudget, ...]
    found: int  # before `most`

    def as_plain(self) -> dict[str, Any]:
        """Return what is recorded with a selection."""
        return {"by": "otm", "found": self.found, "most": self.most, "folds": [asdict(one) for one in self.folds]}

    @property
    def text(self) -> str:
        """How it was found, in words."""
        return describe(self.as_plain())


def describe(auto: dict[str, Any]) -> str:
    """Return how a recorded budget chose itself, in words."""
    ks = sorted(one["k"] for one in auto["folds"])
    span = f"{ks[0]}" if ks[0] == ks[-1] else f"{ks[0]} to {ks[-1]}"
    text = (
        f"OTM over {len(ks)} folds of the targets: the {span} nearest rows of each target are closest, by optimal "
        f"transport, to the targets of the other folds"
    )
    cut = f"; they are {auto['found']:,} rows, and budget.most is {auto['most']:,}"
    return text + (cut if auto["found"] > auto["most"] else "")


def otm_budget(source: AttributionSource, groups: Sequence[str], folds: int, most: int, seed: int) -> AutoChoice:
    """Return how many rows the targets ask for, `most` at most.

    The columns are dealt to folds, every task to all of them in turn. For each fold, k grows, and the rows that are
    among the k nearest of its targets and have a score above 0 are compared with the targets of the other folds: by
    the cost of optimal transport between the two, all rows alike and all targets alike, over distances sqrt(2 - 2 a),
    which is how far apart unit rows of cosine a are. The k of least distance counts, and the rows of all folds
    together are the number. Of equal scores the lowest rows are nearest; a distance is lower where it is so by more
    than the transport is off. Limits of a selection play no part.

    Cost: whole columns once, for the lists; then for every fold some 6 problems of transport for each doubling of k,
    the last of CELLS distances or less: seconds, linear in the rows listed. Memory: the lists, 16 bytes for each of
    NEAREST rows a column, and four times CELLS.

    Source: TAROT, arXiv 2412.00420; vita-epfl/TAROT tarot/data_selector.py, method otm. There every k is tried; here
    beyond 8 every eighth part. There the first k that is no better ends it, and its rows are taken: the set after the
    best one. Here the best is, and k goes on to four times that, as in noise a first rise comes early. There folds are
    drawn without regard to tasks, and the rows are the selection (`layers` comes near it); here they are a number.
    There the transport is blurred by .01 squared; here by a share of the distances' spread, and carried to an end.

    Raises:
        ConfigError: fewer than two columns can be used.
        DataError: scores that are no cosines, or none above 0.
    """
    normalised = normalise("none", source, groups, {})
    column_C = normalised.column_C
    if len(column_C) < 2:
        raise ConfigError(
            "budget.auto: otm compares targets with each other, and the matrix has one column that can be used; give "
            "budget a number"
        )
    lists = nearest_lists(source, normalised, NEAREST)
    _require_cosines(float(lists.z_CL.max()))
    found, chosen = [], [np.zeros(0, np.int64)]
    fold_C = _folds([groups[int(j)] for j in column_C], folds, seed)
    # Thousands of small products: threads would wait for each other, and rounding would follow their number.
    with threadpoolctl.threadpool_limits(1):
        for fold in range(int(fold_C.max()) + 1):
            own, other = np.flatnonzero(fold_C == fold), column_C[fold_C != fold]
            best, rows = _best(source, lists.position_CL[own], lists.z_CL[own], other)
            found.append(best)
            chosen.append(rows)
    number = len(np.unique(np.concatenate(chosen)))
    if number == 0:
        raise DataError("attribution: no score is above 0, so that no row is near a target; give budget a number")
    return AutoChoice(min(number, most), most, tuple(found), number)


def _best(
    source: AttributionSource, position_FL: np.ndarray, z_FL: np.ndarray, other_V: np.ndarray
) -> tuple[FoldBudget, np.ndarray]:
    """Return the best k of a fold and its rows, positions ascending."""
    best, rows = FoldBudget(len(position_FL), 0, 0, None), np.zeros(0, np.int64)
    error, smoothing, potential_V, before = 0.0, 0.0, None, 0
    for k in _growing(position_FL.shape[1]):
        if k > max(FINE, PATIENCE * best.k):
            break
        position_U = np.unique(position_FL[:, :k][z_FL[:, :k] > 0])
        if len(position_U) * len(other_V) > CELLS:
            break
        if len(position_U) == before:
            continue  # no row is new
        before = len(position_U)
        score_UV = source.gather(source.rows[position_U])[:, other_V].astype(np.float64)
        _require_cosines(float(np.abs(score_UV).max()))
        distance_UV = np.sqrt(np.maximum(0, 2 - 2 * score_UV))
        smoothing = smoothing or SMOOTHING * float(distance_UV.std())
        found = transport(distance_UV, smoothing or SMOOTHING, potential_V)
        potential_V = found.potential_V
        if best.distance is None or found.cost < best.distance - found.error - error:
            best, rows = FoldBudget(len(position_FL), k, len(position_U), found.cost), position_U
            error = found.error
    return best, rows


def _growing(most: int) -> Iterator[int]:
    k = 1
    while k <= most:
        yield k
        k += max(1, k // FINE)


def _folds(groups: Sequence[str], folds: int, seed: int) -> np.ndarray:
    """Return the fold of every column: each task is shuffled, and all are dealt in turn."""
    rng = np.random.default_rng(seed)
    order = [place for places in members(groups).values() for place in rng.permutation(places).tolist()]
    fold_C = np.empty(len(order), np.int64)
    fold_C[order] = np.arange(len(order)) % min(folds, len(order))
    return fold_C


def _require_cosines(largest: float) -> None:
    if largest > 1 + ROUNDING:
        raise DataError(
            f"attribution: budget.auto compares rows by cosines, and a score is {largest:.4g}; take attribution.scorer "
            "whitened, or inner_product with similarity cosine, or give budget a number"
        )
