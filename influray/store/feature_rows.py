"""Feature rows of all checkpoints side by side, as unit vectors: their inner products are cosines.

Rows of several checkpoints are joined with the square roots of the weights, so that the product of two joined rows is
the weighted sum of their products, as it is in the attribution matrix.

Shape suffixes: N rows, B asked for, D feature (of all checkpoints together).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influray.protocols import ArtifactMismatch, DataError
from influray.store.attribution import Attribution, as_array
from influray.store.datastore import Datastore
from influray.store.encodings import decoded


class ArrayFeatures:
    """Feature rows in memory: one array [N, D], or one per checkpoint, all checkpoints with the same weight.

    Raises:
        DataError: not two-dimensional numbers, or not of N rows.
    """

    def __init__(self, features: Any, rows: int) -> None:
        several = isinstance(features, list | tuple) and bool(features) and np.ndim(as_array(features[0])) == 2
        self._arrays = [as_array(array) for array in (features if several else [features])]
        for array in self._arrays:
            if array.ndim != 2 or array.dtype.kind not in "fiu" or len(array) != rows:
                raise DataError(f"features: found {array.dtype} of shape {array.shape}, expected numbers [{rows}, D]")

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit rows of these positions in the order given, [B, D] float32."""
        return joined([array[rows] for array in self._arrays], [1.0] * len(self._arrays))


class StoredFeatures:
    """Feature rows of committed datastores, one per checkpoint; read where they are needed."""

    def __init__(self, stores: Sequence[Datastore], weights: Sequence[float]) -> None:
        self._weights = list(weights)
        self._stores = list(stores)
        self._last = [
            np.array([store.plain(number, "row")[-1] for number in range(len(store.part_lengths))], np.int64)
            for store in stores
        ]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit rows of these catalogue rows in the order given, [B, D] float32.

        Raises:
            DataError: a checkpoint has no feature of a row.
        """
        found = [self._of_checkpoint(k, np.asarray(rows, np.int64)) for k in range(len(self._stores))]
        return joined(found, self._weights)

    def _of_checkpoint(self, k: int, rows: np.ndarray) -> np.ndarray:
        store = self._stores[k]
        out_BD = np.empty((len(rows), store.dimension), np.float32)
        part_B = np.searchsorted(self._last[k], rows)
        for part in np.unique(part_B):
            here_B = part_B == part
            table = store.part(int(part)) if part < len(store.part_lengths) else None
            known = table["row"].to_numpy() if table is not None else np.zeros(0, np.int64)
            place_B = np.searchsorted(known, rows[here_B])
            if table is None or not np.array_equal(known[np.minimum(place_B, len(known) - 1)], rows[here_B]):
                raise DataError(f"features: a row of {rows[here_B].tolist()[:3]} has no feature at checkpoint {k + 1}")
            found = [decoded(table, store.dimension, place, place + 1) for place in place_B.tolist()]
            out_BD[here_B] = np.concatenate(found)
        return out_BD


def run_features(attribution: Attribution) -> StoredFeatures:
    """Return the pool's features of the run that an attribution matrix belongs to, with its checkpoint weights.

    Raises:
        ArtifactMismatch: the datastores are not there, or hold no vectors.
    """
    weights = [float(weight) for weight in attribution.manifest["weights"]]
    pool = attribution.folder.parent / "features" / "pool"
    stores = [Datastore(Path(pool) / f"checkpoint-{k}") for k in range(1, len(weights) + 1)]
    if not stores:
        raise ArtifactMismatch(f"{attribution.folder}: names no checkpoint; run `influray score` again")
    for store in stores:
        first = next(store.parts(), None)
        if first is not None and "feature" not in first.column_names:
            raise ArtifactMismatch(
                f"{store.folder}: holds no feature vectors, which constraints.near_duplicates compares; "
                "take features.featurizer: gradient or representation"
            )
    return StoredFeatures(stores, weights)


def joined(blocks: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return unit rows [B, D] float32 of blocks joined with the square roots of the weights; a zero row stays zero."""
    parts = [block.astype(np.float64) * math.sqrt(weight) for block, weight in zip(blocks, weights, strict=True)]
    whole_BD = np.concatenate(parts, axis=1)
    norm_B = np.linalg.norm(whole_BD, axis=1, keepdims=True)
    return (whole_BD / np.where(norm_B > 0, norm_B, 1.0)).astype(np.float32)
