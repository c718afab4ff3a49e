"""How much of the targets' mass each row receives where every target spreads one unit over its nearest rows (TSDS).

A target fills its rows from the nearest on, each up to its capacity; a count common to all targets says how far. A row
of capacity 1 for everyone gets equal parts of the targets' units; one with many near-duplicates less.

Source: TSDS, arXiv 2410.11303; ZifanL/TSDS tsds.py, as arXiv 2602.14696 uses it on other scores.

Shape suffixes: N rows, C columns in use, L rows listed of each column, U rows that are listed, B rows of a block.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influray.protocols import AttributionSource, UnitRows
from influray.selectors.columns import whole_columns
from influray.selectors.normalisers import Normalised
from influray.selectors.sketches import Sketches

LISTED_SHARE = 10  # one row in so many at most, or all would be near to all
SKETCH = 256  # numbers, that distances are told by: off by a tenth at one standard deviation
BLOCK_ROWS = 2048
STEPS = 2.0**10  # densities are rounded to parts of it, so that the last bits of a product move no row


@dataclass(frozen=True)
class NearestLists:
    """The best rows of every column, from the best on, and the best column of every row."""

    position_CL: np.ndarray
    z_CL: np.ndarray  # without the columns' weights
    best_N: np.ndarray  # the largest z of a row
    place_N: np.ndarray  # and the first column that has it


def nearest_lists(source: AttributionSource, normalised: Normalised, most: int) -> NearestLists:
    """Return the lists of `most` rows, at most a tenth of all; of equal scores the lowest rows. Reads whole columns."""
    rows, columns = source.shape[0], len(normalised.column_C)
    most = min(most, max(1, rows // LISTED_SHARE))
    position_CL, z_CL = np.empty((columns, most), np.int64), np.empty((columns, most))
    best_N, place_N = np.full(rows, -np.inf), np.zeros(rows, np.int64)
    for place, score_N in whole_columns(source, normalised.column_C):
        z_N = normalised.values(score_N[:, None], [place])[:, 0] / normalised.weight_C[place]
        better_N = z_N > best_N
        best_N[better_N], place_N[better_N] = z_N[better_N], place
        floor = np.partition(z_N, rows - most)[rows - most]
        above = np.flatnonzero(z_N > floor)
        listed = np.sort(np.append(above, np.flatnonzero(z_N == floor)[: most - len(above)]))
        position_CL[place] = listed[np.argsort(-z_N[listed], kind="stable")]
        z_CL[place] = z_N[position_CL[place]]
    return NearestLists(position_CL, z_CL, best_N, place_N)


def assigned_mass(
    lists: NearestLists, capacity_N: np.ndarray, weight_C: np.ndarray, alpha: float, scale: float
) -> np.ndarray:
    """Return the mass of every row, [N], of a total of 1.

    The count grows until the mean over targets of the cost of growing, the sum of capacity times (z - z of the next
    row), reaches (1 - alpha) / alpha * scale; or until all lists are full.
    """
    capacity_CL = capacity_N[lists.position_CL]
    count_CL = np.cumsum(capacity_CL, axis=1)
    columns, most = count_CL.shape
    # Each count at which a target begins on its next row, in order; what growing costs it there.
    cost_CL = np.cumsum(capacity_CL * lists.z_CL, axis=1)[:, :-1] - count_CL[:, :-1] * lists.z_CL[:, 1:]
    step_CL = weight_C[:, None] * np.diff(cost_CL, axis=1, prepend=0)
    begun_E = count_CL[:, :-1].reshape(-1)
    order_E = np.lexsort((np.repeat(np.arange(columns), most - 1), np.tile(np.arange(most - 1), columns), begun_E))
    total_E = np.cumsum(step_CL.reshape(-1)[order_E])
    dear = np.flatnonzero(alpha / scale * total_E >= (1 - alpha) * weight_C.sum())
    count = begun_E[order_E[dear[0]]] if len(dear) else count_CL[:, -1].max()
    filled_CL = np.diff(np.minimum(count_CL, count), axis=1, prepend=0)
    mass_N = np.zeros(len(capacity_N))
    for c, position_L in enumerate(lists.position_CL):
        mass_N[position_L] += weight_C[c] * filled_CL[c]
    return mass_N / (count * weight_C.sum())


def densities(features: UnitRows, row_U: np.ndarray, sigma: float) -> np.ndarray:
    """Return the sum over these rows of max(0, 1 - squared distance of unit rows / sigma^2), itself included, [U].

    Distances are those of sketches of 256 numbers (of the rows themselves where they have no more). Quadratic in U.
    """
    first_BD = features.gather(row_U[:1])
    sketches = Sketches(first_BD.shape[1], SKETCH, 1.0)
    sketch_Um = np.concatenate(
        [sketches.of(features.gather(row_U[low : low + BLOCK_ROWS])) for low in range(0, len(row_U), BLOCK_ROWS)]
    )
    # The product is minus half of the squared distance; scaled, and 1 added to what a row's last number, 1, meets.
    other_Um = Sketches.other(sketch_Um) * np.float32(2 / sigma**2)
    other_Um[:, -1] += 1
    density_U = np.zeros(len(row_U))
    starts = range(0, len(row_U), BLOCK_ROWS)
    for low in starts:
        for other in starts[low // BLOCK_ROWS :]:
            kernel = sketch_Um[low : low + BLOCK_ROWS] @ other_Um[other : other + BLOCK_ROWS].T
            np.maximum(kernel, 0, out=kernel)
            density_U[low : low + BLOCK_ROWS] += kernel.sum(axis=1)
            if other > low:
                density_U[other : other + BLOCK_ROWS] += kernel.sum(axis=0)
    return np.maximum(1, np.round(density_U * STEPS) / STEPS)
