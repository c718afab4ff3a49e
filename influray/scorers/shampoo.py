"""Influence through the curvature of each weight matrix, eigenvectors by Shampoo and eigenvalues corrected.

Shape suffixes: B pool rows of a block, N pool rows, T targets, D feature, p rows and q columns of one weight's matrix,
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


class Shampoo(Scorer):
    """A = sum over checkpoints and weights of w_k * <U'GX, U'VX / (Lambda + damping * mean of Lambda)>.

    G [p, q] is the plain gradient of a pool row for one weight, V a target's, both projected on either side. U are the
    eigenvectors of the sum over the pool of G G', X those of G' G, and Lambda [p, q] is the mean of (U'GX)^2: the
    diagonal of the second moment of the gradients in that basis, the best there is in it. The larger `damping`, the
    nearer is A to the dot product, the weights of a model each divided by their mean Lambda.

    Source: the eigenvalue-corrected basis of George et al., arXiv 1806.03884, damped as Grosse et al., arXiv
    2308.03296, do (0.1), with the two sides of Shampoo, arXiv 1802.09568, in place of those of inputs and output
    gradients of single tokens: they follow from the gradients of whole rows, which the datastores hold. The gradients
    are those of the data's answers, not of answers drawn from the model.

    Cost: two reads of the pool before that of the scores, (p + q) D operations a row in each. A weight's p and q are at
    most 64 unless features.projector.options.columns says otherwise.

    Raises:
        ArtifactMismatch: pool rows that are not plain gradients, or not one matrix for each weight.
    """

    passes = 2

    def __init__(self, stores: Stores, damping: Annotated[float, Field(gt=0)] = 0.1) -> None:
        require("shampoo", stores, gradients="plain", blocks=True, factors=True)
        self._weights, self._factors_K = stores.weights, stores.factors_K
        self._damping = damping

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return G G' and G' G of every weight, one after the other; in the second pass (U'GX)^2 [D] and the count.

        Per checkpoint.
        """
        found = {"count": np.array([len(pool)], np.float64)}
        for k in range(len(self._weights)):
            pool_BD = plain_rows(pool, k)
            if number == 1:
                matrices = [pool_Bpq for _, pool_Bpq in self._matrices(k, pool_BD)]
                found[f"left_{k}"] = np.concatenate([_outer(one) for one in matrices], axis=None)
                found[f"right_{k}"] = np.concatenate([_outer(one.swapaxes(1, 2)) for one in matrices], axis=None)
                continue
            square_D = np.zeros(pool_BD.shape[1])
            bases = self._bases(k, state)
            for (here, pool_Bpq), (left_pp, right_qq) in zip(self._matrices(k, pool_BD), bases, strict=True):
                square_D[here] = np.square(left_pp.T @ pool_Bpq @ right_qq).sum(axis=0).reshape(-1)
            found[f"square_{k}"] = square_D
        return found

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return U and X of every weight; after the second pass U (U'VX / (Lambda + damping)) X' as [T, D] float32.

        Per checkpoint.
        """
        fitted = {}
        for k in range(len(self._weights)):
            if number == 1:
                for side in ("left", "right"):
                    moments = self._squares(k, sums[f"{side}_{k}"], side)
                    fitted[f"{side}_{k}"] = np.concatenate([np.linalg.eigh(one)[1] for one in moments], axis=None)
                continue
            target_TD = plain_rows(target, k)
            fitted_TD = np.zeros_like(target_TD)
            bases = self._bases(k, state)
            for (here, target_Tpq), (left_pp, right_qq) in zip(self._matrices(k, target_TD), bases, strict=True):
                value_pq = (sums[f"square_{k}"][here] / sums["count"]).reshape(target_Tpq.shape[1:])
                mean = value_pq.mean()
                if mean > 0:  # a weight whose gradients are all zero has no curvature, and adds nothing to any score
                    turned_Tpq = left_pp.T @ target_Tpq @ right_qq / (value_pq + self._damping * mean)
                    fitted_TD[:, here] = (left_pp @ turned_Tpq @ right_qq.T).reshape(len(target_TD), -1)
            fitted[f"target_{k}"] = fitted_TD.astype(np.float32)
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32."""
        return fitted_products(pool, state, self._weights)

    def _matrices(self, checkpoint: int, row_BD: np.ndarray) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield (its place in D, its matrix of every row [B, p, q]) of each weight."""
        for first, p, q in self._factors_K[checkpoint]:
            here = slice(first, first + p * q)
            yield here, row_BD[:, here].reshape(len(row_BD), p, q)

    def _squares(self, checkpoint: int, flat: np.ndarray, side: str) -> list[np.ndarray]:
        """Return the [p, p] or [q, q] of every weight, that stand one after the other."""
        widths = [p if side == "left" else q for _, p, q in self._factors_K[checkpoint]]
        cuts = np.cumsum([width**2 for width in widths])[:-1]
        return [one.reshape(width, width) for one, width in zip(np.split(flat, cuts), widths, strict=True)]

    def _bases(self, checkpoint: int, state: Arrays) -> list[tuple[np.ndarray, np.ndarray]]:
        sides = (self._squares(checkpoint, state[f"{side}_{checkpoint}"], side) for side in ("left", "right"))
        return list(zip(*sides, strict=True))


def _outer(row_Bpq: np.ndarray) -> np.ndarray:
    """Return the sum over rows of G G', [p, p]."""
    wide_pn = row_Bpq.swapaxes(0, 1).reshape(row_Bpq.shape[1], -1)
    return wide_pn @ wide_pn.T
