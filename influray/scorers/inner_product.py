"""A = sum over checkpoints of w_k * G_k V_k^T: the influence of LESS, arXiv 2402.04333, before any reduction.

Shape suffixes: B pool rows of a block, T targets, D feature, K checkpoints.
"""

from __future__ import annotations

from typing import Literal

import numpy as np

from influray.protocols import Arrays, FeatureRows, Scorer, Stores
from influray.scorers.options import require
from influray.scorers.products import add_products


class InnerProduct(Scorer):
    """Inner products of pool and target rows, weighted by checkpoint, float32.

    `similarity` is "cosine" (of the stored unit rows, as LESS has it) or "dot", of the rows with their norms: the
    first-order change of the loss itself (TracIn, arXiv 2002.08484), in which short answers, whose gradients are
    longer, count for more.

    Raises:
        ArtifactMismatch: the stores hold no vectors.
    """

    def __init__(self, stores: Stores, similarity: Literal["cosine", "dot"] = "cosine") -> None:
        require("inner_product", stores, makes="vectors")
        self._weights = stores.weights
        self._similarity = similarity

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32.

        Products and sums are float32, checkpoints in their order. A matrix product may round a row otherwise in
        a block of another height: bytes repeat for the same block, values for any.
        """
        score_BT = np.zeros((len(pool), len(target)), np.float32)
        for k, weight in enumerate(self._weights):
            target_TD = target.feature_KBD[k].astype(np.float32) * np.float32(weight)
            norm_B = None
            if self._similarity == "dot":
                target_TD *= target.facts_KB[k]["norm"][:, None]
                norm_B = pool.facts_KB[k]["norm"]
            add_products(score_BT, pool.feature_KBD[k], target_TD, norm_B)
        return score_BT
