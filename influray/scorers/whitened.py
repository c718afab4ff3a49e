"""Cosines of whitened rows: the score of TAROT, arXiv 2412.00420.

Directions in which all rows differ much count for less: those of one common style or length, say.

Shape suffixes: B pool rows of a block, T targets, D feature, K checkpoints.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, FeatureRows, Scorer, Stores
from influray.scorers.options import require
from influray.scorers.products import add_products
from influray.store.encodings import widened


class Whitened(Scorer):
    """A = sum over checkpoints of w_k * cosine of x L^-T and v L^-T, where x and v are centred and L L^T = C + ridge I.

    Mean and covariance C (over N + T, not one less) are those of pool and targets together. Rows are the stored unit
    rows, so that `ridge` has a scale: the eigenvalues of C sum to 1 at most.

    Cost: D^2 a row, D^3 once, then D^2 a row. In bytes a checkpoint: 16 D^2 in a worker that takes sums (1 GB at
    D = 8192), 8 D^2 on disk for each of them until the fit, 4 D^2 for the state, which workers of one machine share.

    Source: the paper, whose whitening is x L^-T. The authors' code (vita-epfl/TAROT wfd_estimator.py, get_wfd)
    multiplies by the transpose, x L^-1, which leaves a covariance that is not the identity. There rows have their
    norms, which makes pool rows of another direction than the targets' incomparable; only the last checkpoint is
    used; and products are float16.

    Raises:
        ArtifactMismatch: the stores hold no vectors.
    """

    passes = 1

    def __init__(self, stores: Stores, ridge: Annotated[float, Field(gt=0)] = 1e-5) -> None:
        require("whitened", stores, makes="vectors")
        self._weights = stores.weights
        self._ridge = ridge

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return count, and per checkpoint the sum of the rows [D] and of their outer products [D, D]."""
        return _sums(pool)

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return per checkpoint the mean, L^-T and the whitened unit targets, float32."""
        mine = _sums(target)
        total = sums["count"] + mine["count"]
        fitted = {}
        for k in range(len(self._weights)):
            mean_D = (sums[f"sum_{k}"] + mine[f"sum_{k}"]) / total
            covariance_DD = (sums[f"outer_{k}"] + mine[f"outer_{k}"]) / total
            covariance_DD -= np.outer(mean_D, mean_D)
            covariance_DD.flat[:: len(mean_D) + 1] += self._ridge
            whitener_DD = np.linalg.inv(np.linalg.cholesky(covariance_DD)).T
            target_TD = (widened(target.feature_KBD[k], np.float64) - mean_D) @ whitener_DD
            found = {"mean": mean_D, "whitener": whitener_DD, "target": _units(target_TD)}
            fitted |= {f"{name}_{k}": array.astype(np.float32) for name, array in found.items()}
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32."""
        score_BT = np.zeros((len(pool), len(target)), np.float32)
        for k, weight in enumerate(self._weights):
            centred_BD = widened(pool.feature_KBD[k], np.float32)
            centred_BD -= state[f"mean_{k}"]
            white_BD = _units(centred_BD @ state[f"whitener_{k}"])
            add_products(score_BT, white_BD, state[f"target_{k}"] * np.float32(weight))
        return score_BT


def _sums(rows: FeatureRows) -> dict[str, np.ndarray]:
    found = {"count": np.array([len(rows)], np.float64)}
    for k, feature_BD in enumerate(rows.feature_KBD):
        exact_BD = widened(feature_BD, np.float64)
        found[f"sum_{k}"] = exact_BD.sum(axis=0)
        found[f"outer_{k}"] = exact_BD.T @ exact_BD
    return found


def _units(rows_BD: np.ndarray) -> np.ndarray:
    """Return the rows at norm 1; one that lies at the mean stays zero."""
    norm_B = np.linalg.norm(rows_BD, axis=1, keepdims=True)
    return rows_BD / np.maximum(norm_B, 1e-12)
