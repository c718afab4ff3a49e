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
import pyarrow as pa

from influray.protocols import ArtifactMismatch, DataError
from influray.store.attribution import Attribution, as_array
from influray.store.datastore import Datastore
from influray.store.encodings import decoded_at, widen


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
        return joined([array[rows] for array in self._arrays])


class StoredFeatures:
    """Feature rows of committed datastores, one per checkpoint; read where they are needed, each file opened once."""

    def __init__(self, stores: Sequence[Datastore], weights: Sequence[float]) -> None:
        self._scales = [np.float32(math.sqrt(weight)) for weight in weights]
        self._stores = list(stores)
        self._last = [
            np.array([store.plain(number, "row")[-1] for number in range(len(store.part_lengths))], np.int64)
            for store in stores
        ]
        self._open: dict[tuple[int, int], tuple[pa.Table, np.ndarray]] = {}

    def gather(self, rows: np.ndarray) -> np.ndarray:
        """Return the unit rows of these catalogue rows in the order given, [B, D] float32.

        Raises:
            DataError: a checkpoint has no feature of a row.
        """
        row_B, back_B = np.unique(np.asarray(rows, np.int64), return_inverse=True)
        out_BD = np.empty((len(row_B), sum(store.dimension for store in self._stores)), np.float32)
        column = 0
        for k, store in enumerate(self._stores):
            self._of_checkpoint(k, row_B, out_BD[:, column : column + store.dimension])
            column += store.dimension
        norm_B = np.sqrt(np.einsum("bd,bd->b", out_BD, out_BD))
        out_BD /= np.where(norm_B > 0, norm_B, 1)[:, None]
        return out_BD if np.array_equal(back_B, np.arange(len(row_B))) else out_BD[back_B]

    def _of_checkpoint(self, k: int, row_B: np.ndarray, out_BD: np.ndarray) -> None:
        """Write the rows, ascending and none twice, times the root of the checkpoint's weight."""
        part_B = np.searchsorted(self._last[k], row_B)
        for part in np.unique(part_B).tolist():
            here = slice(*np.searchsorted(part_B, [part, part + 1]))
            table, known = self._part(k, part)
            place_b = np.searchsorted(known, row_B[here])
            if not len(known) or not np.array_equal(known[np.minimum(place_b, len(known) - 1)], row_B[here]):
                raise DataError(f"features: a row of {row_B[here].tolist()[:3]} has no feature at checkpoint {k + 1}")
            assert table is not None
            widen(decoded_at(table, self._stores[k].dimension, place_b), out_BD[here])
        out_BD *= self._scales[k]

    def _part(self, k: int, part: int) -> tuple[pa.Table | None, np.ndarray]:
        """Return a part and the rows in it; none behind the last part."""
        if part == len(self._stores[k].part_lengths):
            return None, np.zeros(0, np.int64)
        if (k, part) not in self._open:
            table = self._stores[k].part(part)
            self._open[k, part] = table, table["row"].to_numpy()
        return self._open[k, part]


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


def joined(blocks: Sequence[np.ndarray]) -> np.ndarray:
    """Return unit rows [B, D] float32 of blocks side by side; a zero row stays zero."""
    whole_BD = np.concatenate([block.astype(np.float64) for block in blocks], axis=1)
    norm_B = np.linalg.norm(whole_BD, axis=1, keepdims=True)
    return (whole_BD / np.where(norm_B > 0, norm_B, 1.0)).astype(np.float32)
