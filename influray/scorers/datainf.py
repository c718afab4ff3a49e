"""Influence through an inverse Hessian in closed form, one LoRA module at a time: DataInf, arXiv 2310.00902.

Shape suffixes: B pool rows of a block, N pool rows, T targets, D feature, d its part for one module, L modules,
K checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, FeatureRows, Scorer, Stores
from influray.scorers.options import require
from influray.scorers.products import fitted_products, plain_rows


class DataInf(Scorer):
    """A = sum over checkpoints and modules of w_k * G W^T, W = (1/lambda) (V - ((V G^T) o s) G / N).

    s_i = 1 / (lambda + |g_i|^2), and lambda = `damping` * the mean square of the module's numbers over all rows. W is
    the mean over the pool of (g_i g_i^T + lambda I)^-1 v, by the formula of Sherman and Morrison. Zeros that a factored
    projection leaves over count in the mean square.

    Source: equation 5 of the paper and compute_hvp_proposed of ykwon0407/DataInf influence.py, whose influence has the
    opposite sign (a loss that falls). There a block is one matrix, here a LoRA pair, projected.

    Raises:
        ArtifactMismatch: pool rows that are not plain gradients, or not split over modules.
    """

    passes = 2

    def __init__(self, stores: Stores, damping: Annotated[float, Field(gt=0)] = 0.1) -> None:
        require("datainf", stores, gradients="plain", blocks=True)
        self._weights = stores.weights
        self._bounds_K = stores.bounds_K
        self._damping = damping

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return count and squares per module [L]; in the second pass ((V G^T) o s) G [T, D]. Per checkpoint."""
        found = {"count": np.array([len(pool)], np.float64)}
        for k in range(len(self._weights)):
            pool_BD = plain_rows(pool, k)
            if number == 1:
                found[f"square_{k}"] = np.array([np.square(pool_BD[:, d]).sum() for d in self._modules(k)])
                continue
            target_TD = plain_rows(target, k)
            product_TD = np.zeros_like(target_TD)
            for lam, d in zip(state[f"lambda_{k}"], self._modules(k), strict=True):
                if lam > 0:
                    scale_B = 1 / (lam + np.square(pool_BD[:, d]).sum(axis=1))
                    product_TD[:, d] = (target_TD[:, d] @ pool_BD[:, d].T * scale_B) @ pool_BD[:, d]
            found[f"product_{k}"] = product_TD
        return found

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return lambda [L] per checkpoint; after the second pass W [T, D] float32."""
        fitted = {}
        for k in range(len(self._weights)):
            if number == 1:
                width_L = np.diff(self._bounds_K[k])
                fitted[f"lambda_{k}"] = self._damping * sums[f"square_{k}"] / (sums["count"] * width_L)
                continue
            target_TD = plain_rows(target, k) - sums[f"product_{k}"] / sums["count"]
            for lam, d in zip(state[f"lambda_{k}"], self._modules(k), strict=True):
                # A module whose gradients are all zero has no Hessian to invert, and adds nothing to any score.
                target_TD[:, d] *= 1 / lam if lam > 0 else 0
            fitted[f"target_{k}"] = target_TD.astype(np.float32)
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32."""
        return fitted_products(pool, state, self._weights)

    def _modules(self, checkpoint: int) -> Iterator[slice]:
        bounds = self._bounds_K[checkpoint]
        return map(slice, bounds[:-1], bounds[1:])
