"""Influence through the Gram matrix of the pool's gradients: TRAK, arXiv 2303.14186, as DsDm, 2401.12926, uses it.

Shape suffixes: B pool rows of a block, T targets, D feature, K checkpoints.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, FeatureRows, Scorer, Stores
from influray.scorers.options import require
from influray.scorers.products import fitted_products, plain_rows


class Gram(Scorer):
    """A = sum over checkpoints of w_k * G (G^T G + lambda I)^-1 V^T, of the plain gradients with their norms.

    lambda = `ridge` * trace(G^T G) / D, so that the scale of the gradients does not matter to it. The larger it is, the
    nearer is A to a multiple of the dot product.

    Source: section 3 of TRAK. Gradients are those of the loss, which hold the factor (1 - p) of its Q already; a term
    is computed per checkpoint and then averaged, where TRAK averages the factors first.

    Cost: D^2 a row, D^3 once, then T D a row. In bytes a checkpoint: 16 D^2 in a worker that takes sums (1 GB at
    D = 8192), 8 D^2 on disk for each of them until the fit.

    Raises:
        ArtifactMismatch: pool rows that are not plain gradients.
    """

    passes = 1

    def __init__(self, stores: Stores, ridge: Annotated[float, Field(gt=0)] = 0.01) -> None:
        require("gram", stores, gradients="plain")
        self._weights = stores.weights
        self._ridge = ridge

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return G^T G per checkpoint."""
        found = {}
        for k in range(len(self._weights)):
            pool_BD = plain_rows(pool, k)
            found[f"gram_{k}"] = pool_BD.T @ pool_BD
        return found

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return V (G^T G + lambda I)^-1 per checkpoint, [T, D] float32."""
        fitted = {}
        for k in range(len(self._weights)):
            gram_DD = np.array(sums[f"gram_{k}"])
            dimension = len(gram_DD)
            gram_DD.flat[:: dimension + 1] += self._ridge * np.trace(gram_DD) / dimension
            fitted[f"target_{k}"] = np.linalg.solve(gram_DD, plain_rows(target, k).T).T.astype(np.float32)
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32."""
        return fitted_products(pool, state, self._weights)
