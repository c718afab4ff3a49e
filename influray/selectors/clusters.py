"""The pool's rows in clusters of like features: k-means on sketches of unit rows.

Shape suffixes: N rows, C clusters, m numbers of a sketch, B rows of one block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from pydantic import Field

from influray.protocols import UnitRows
from influray.selectors.sketches import Sketches

SKETCH = 256  # numbers; of rows that have no more, the rows themselves
STEPS = 10  # of k-means, or fewer where nothing moves any more
BLOCK_ROWS = 4096

ClusterCount = Annotated[int, Field(ge=1)] | Literal["auto"]  # auto = the root of the number of rows


@dataclass(frozen=True)
class Clusters:
    """`label_N` the cluster of each row, `distance_N` its squared distance to the centre, `sketch_Nm` float32."""

    label_N: np.ndarray
    distance_N: np.ndarray
    sketch_Nm: np.ndarray


def cluster_rows(features: UnitRows, row_N: np.ndarray, count: ClusterCount, seed: int) -> Clusters:
    """Return the rows in up to `count` clusters by Lloyd's steps from rows drawn by the seed.

    Time: N x C x 256 a step, and one read of the features; memory: 1 KiB a row.
    """
    rows = len(row_N)
    clusters = min(rows, max(1, math.isqrt(rows)) if count == "auto" else count)
    sketch_Nm = sketched(features, row_N)
    drawn = np.sort(np.random.default_rng(seed).choice(rows, clusters, replace=False))
    centre_Cm = sketch_Nm[drawn].astype(np.float64)
    label_N, distance_N = _nearest(sketch_Nm, centre_Cm)
    for _ in range(STEPS):
        centre_Cm = _means(sketch_Nm, label_N, centre_Cm)
        before, (label_N, distance_N) = label_N, _nearest(sketch_Nm, centre_Cm)
        if np.array_equal(before, label_N):
            break
    return Clusters(label_N, distance_N, sketch_Nm)


def sketched(features: UnitRows, row_N: np.ndarray) -> np.ndarray:
    """Return a sketch of each row, whose products are near to cosines, float32 [N, m]."""
    blocks, sketches = [], None
    for low in range(0, len(row_N), BLOCK_ROWS):
        unit_BD = features.gather(row_N[low : low + BLOCK_ROWS])
        sketches = sketches or Sketches(unit_BD.shape[1], SKETCH, 1.0)
        blocks.append(sketches.of(unit_BD)[:, :-2])
    return np.concatenate(blocks)


def _nearest(sketch_Nm: np.ndarray, centre_Cm: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the nearest centre of each row, the first of equals, and the squared distance."""
    label_N, distance_N = np.empty(len(sketch_Nm), np.int64), np.empty(len(sketch_Nm))
    square_C, centre_mC = np.square(centre_Cm).sum(axis=1), centre_Cm.astype(np.float32).T
    for low in range(0, len(sketch_Nm), BLOCK_ROWS):
        block_Bm = sketch_Nm[low : low + BLOCK_ROWS]
        beyond_BC = square_C - 2 * (block_Bm @ centre_mC).astype(np.float64)
        label_B = beyond_BC.argmin(axis=1)
        square_B = np.square(block_Bm.astype(np.float64)).sum(axis=1)
        here = slice(low, low + len(label_B))
        label_N[here] = label_B
        distance_N[here] = np.maximum(0, square_B + beyond_BC[np.arange(len(label_B)), label_B])
    return label_N, distance_N


def _means(sketch_Nm: np.ndarray, label_N: np.ndarray, centre_Cm: np.ndarray) -> np.ndarray:
    """Return the mean of each cluster; one that has lost its rows stays where it is."""
    order_N = np.argsort(label_N, kind="stable")
    found_Cm = centre_Cm.copy()
    for cluster, place in zip(*_runs(label_N[order_N]), strict=True):
        found_Cm[cluster] = sketch_Nm[order_N[place]].mean(axis=0, dtype=np.float64)
    return found_Cm


def _runs(sorted_N: np.ndarray) -> tuple[list[int], list[slice]]:
    """Return the values of an ascending array, and where each stands."""
    value, start = np.unique(sorted_N, return_index=True)
    stop = np.append(start[1:], len(sorted_N))
    return value.tolist(), [slice(*pair) for pair in zip(start.tolist(), stop.tolist(), strict=True)]


def members_of(label_N: np.ndarray) -> dict[int, np.ndarray]:
    """Return cluster -> its rows, ascending positions; clusters without any are left out."""
    order_N = np.argsort(label_N, kind="stable")
    return {cluster: order_N[place] for cluster, place in zip(*_runs(label_N[order_N]), strict=True)}
