"""How much an example's gradient changes from checkpoint to checkpoint: VoG, arXiv 2008.11600. It asks for no target.

Shape suffixes: B pool rows of a block, D feature, K checkpoints.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, Stores
from influray.scorers.options import require
from influray.scorers.products import plain_rows

CHECKPOINTS = 3  # the spread of two says no more than their distance


class VoG(Scorer):
    """One column: the mean over the D numbers of their standard deviation over checkpoints, as a z-score within the
    row's source. High = hard, or noise. A source whose rows are all alike has zeros. Weights play no part.

    Source: section 2 of the paper, with the projected LoRA gradient of the loss in place of the gradient of the true
    class at the pixels, and the source in place of the class.

    Raises:
        ArtifactMismatch: pool rows that are not plain gradients, projections that differ, or fewer than three
            checkpoints.
    """

    passes = 1

    def __init__(self, stores: Stores) -> None:
        require("vog", stores, gradients="plain", matrices="one", checkpoints=CHECKPOINTS)

    def columns(self, targets: Columns) -> Columns:
        """Return the one column, "vog"."""
        return Columns((-1,), ("vog",), ("vog",))

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return per source the count, the sum and the sum of squares of the spread, [3]."""
        spread_B = _spread(pool)
        found = {}
        for name, here in _sources(pool.group_B).items():
            spread_b = spread_B[here]
            found[name] = np.array([len(here), spread_b.sum(), np.square(spread_b).sum()])
        return found

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return per source the mean and the standard deviation (ddof 0), [2]."""
        fitted = {}
        for name, (count, total, squares) in sums.items():
            mean = total / count
            deviation = max(squares / count - mean**2, 0) ** 0.5
            # The difference of two nearly equal numbers: below this it is rounding.
            fitted[name] = np.array([mean, deviation if deviation > 1e-7 * mean else 0])
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, 1] float32."""
        score_B = _spread(pool)
        for name, here in _sources(pool.group_B).items():
            mean, deviation = state[name]
            score_B[here] = (score_B[here] - mean) / deviation if deviation else 0
        return score_B[:, None].astype(np.float32)


def _spread(pool: FeatureRows) -> np.ndarray:
    """Return the mean over the numbers of a row of their standard deviation over checkpoints, [B] float64."""
    checkpoints = range(len(pool.feature_KBD))
    mean_BD = sum(plain_rows(pool, k) for k in checkpoints) / len(checkpoints)
    variance_BD = sum(np.square(plain_rows(pool, k) - mean_BD) for k in checkpoints) / len(checkpoints)
    return np.sqrt(variance_BD).mean(axis=1)


def _sources(group_B: Sequence[str]) -> dict[str, list[int]]:
    """Return the places of each source's rows."""
    found: dict[str, list[int]] = {}
    for place, group in enumerate(group_B):
        found.setdefault(f"source {group}", []).append(place)
    return found
