"""The norm of an example's gradient: GraNd, arXiv 2107.07075. It asks for no target."""

from __future__ import annotations

import numpy as np

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, Stores
from influray.scorers.options import require


class GraNd(Scorer):
    """One column: the sum over checkpoints of w_k * norm of the plain gradient, unprojected, whatever the direction.

    The loss is a mean over tokens, so short answers have longer gradients. The very highest are often noise:
    `drop_share` of top_k leaves them out (BERT on a data diet, arXiv 2211.05610).

    Raises:
        ArtifactMismatch: stores of something other than gradients.
    """

    def __init__(self, stores: Stores) -> None:
        require("grand", stores, gradients="any")
        self._weights = stores.weights

    def columns(self, targets: Columns) -> Columns:
        """Return the one column, "grand"."""
        return Columns((-1,), ("grand",), ("grand",))

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, 1] float32."""
        norm_KB = np.stack([facts["grad_norm"] for facts in pool.facts_KB]).astype(np.float64)
        return (np.array(self._weights) @ norm_KB)[:, None].astype(np.float32)
