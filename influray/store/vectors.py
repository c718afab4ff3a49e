"""The vectors whose inner products are the attribution matrix, read from the datastores of a run.

A pool row's vector holds its stored rows of all K checkpoints one after the other, each times the square root of the
checkpoint's weight; a query's likewise. Then one inner product is A[i, j] = sum_k w_k <g_ki, v_kj>. Where the scorer
compares rows with their norms (`similarity: dot`), both sides carry theirs.

Shape suffixes: N pool rows, B rows of a block, T targets, Q queries, D feature, F = K * D numbers of a vector.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from influray.protocols import ArtifactMismatch, DataError
from influray.store.artifact import fingerprint, require_manifest
from influray.store.datastore import features_digest
from influray.store.features import JoinedRows
from influray.store.run_directory import RunDirectory

ASKABLE = "inner_product"  # the scorer whose lines are inner products of stored rows


class SplitVectors(JoinedRows):
    """The vectors of the rows of a split that are valid at all K checkpoints.

    `rows` int64 [N]: their catalogue rows, ascending. `weights` float64 [K]. `similarity` is that of the matrix,
    cosine or dot. `digest` changes whenever a vector does.

    Raises:
        ArtifactMismatch: the matrix is not there or of another scorer, or the datastores are not those it was made of.
    """

    block_bytes = 2**23  # stay in the cache between conversion and product

    def __init__(self, directory: RunDirectory, split: str = "pool") -> None:
        self.directory = directory
        matrix = _askable_matrix(directory)
        self.similarity: str = matrix["options"].get("similarity", "cosine")
        folders = [directory.features(split, k) for k in range(1, len(matrix["weights"]) + 1)]
        super().__init__(folders, matrix["weights"], with_norm=self.similarity == "dot")
        for store in self.stores:
            store.require_vectors("and so none to ask")
        parts = features_digest([store.store.content for store in self.stores])
        if split == "pool" and parts != matrix["pool_features"]:
            raise ArtifactMismatch(
                f"{directory.attribution}: was made of other features than those in {directory.features('pool', 1)}; "
                "run `influray score` again"
            )
        self.digest = fingerprint([parts, matrix["weights"], self.similarity])

    def check_ahead(self) -> None:
        """Begin to check all datastores in the background, for who is about to read all of them."""
        for store in self.stores:
            store.store.check_ahead()

    def query(self, unit_KQD: Sequence[np.ndarray], norm_KQ: Sequence[np.ndarray]) -> np.ndarray:
        """Return the vectors of new rows, float32 [Q, F], from unit rows and the norms they had, per checkpoint."""
        if self.similarity == "dot":
            unit_KQD = [unit * np.asarray(norm)[:, None] for unit, norm in zip(unit_KQD, norm_KQ, strict=True)]
        return join_checkpoints(unit_KQD, self.weights)


class PoolVectors(SplitVectors):
    """The vectors of the pool. `rows` are those of the attribution matrix. Raises as `SplitVectors`."""

    def __init__(self, directory: RunDirectory) -> None:
        super().__init__(directory, "pool")


def target_vectors(directory: RunDirectory) -> tuple[np.ndarray, np.ndarray]:
    """Return (catalogue rows int64 [T], vectors float32 [T, F]) of the targets, in the order of the columns of A."""
    targets = SplitVectors(directory, "target")
    return targets.rows, targets.take(np.arange(len(targets.rows)))


def join_checkpoints(row_KQD: Sequence[np.ndarray], weights: Sequence[float] | np.ndarray) -> np.ndarray:
    """Return float32 [Q, F]: the rows of each checkpoint times the square root of its weight, side by side.

    Raises:
        DataError: a number is not finite.
    """
    parts = [
        np.asarray(row_QD, np.float32) * np.float32(math.sqrt(weight))
        for row_QD, weight in zip(row_KQD, weights, strict=True)
    ]
    joined_QF = np.concatenate(parts, axis=1)
    if not np.isfinite(joined_QF).all():
        raise DataError("query: its features are not finite")
    return joined_QF


def _askable_matrix(directory: RunDirectory) -> dict[str, Any]:
    """Return the manifest of a matrix whose lines are inner products of stored rows. Raises ArtifactMismatch."""
    matrix = require_manifest(directory.attribution, "score")
    if not {"scorer", "options", "pool_features"} <= matrix.keys():
        raise ArtifactMismatch(f"{directory.attribution}: does not say of what it was made; run `influray score` again")
    if matrix["scorer"] != ASKABLE:
        raise ArtifactMismatch(
            f"{directory.attribution}: made by the scorer {matrix['scorer']}, whose lines are no inner products of "
            f"stored rows and cannot be asked again; attribution.scorer: {ASKABLE} can (similarity cosine or dot)"
        )
    return matrix
