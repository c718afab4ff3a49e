"""By how much training on a task's targets lowers the loss of each row: CoLoR-Filter, arXiv 2406.10670. Forward only.

Shape suffixes: B pool rows of a block, G adapters, K = G + 1 checkpoints, the first of them the base.
"""

from __future__ import annotations

import numpy as np

from influray.protocols import Arrays, Columns, FeatureRows, Scorer, Stores
from influray.scorers.options import require

_FLOOR = 1e-6  # a loss below it is rounding of float32 logits


class LossDrop(Scorer):
    """A[i, g] = loss of row i under the base - loss under adapter g, each the mean over the row's answer tokens.

    One column a task; where one adapter was trained on the targets of several tasks (`warmup.pooled`), the one column
    "loss_drop". A row scores high where the model that was tuned on the targets (the paper's conditional model) finds
    it likelier than the untouched one (its prior) did, and the paper keeps the highest. `normalised` divides by the
    loss under the base, 1e-6 at least: the share of it that went, whatever a row's loss is to begin with.

    No target row is scored, and none of the pool is compared with one: what the adapters were fitted on shows in no
    other number. A copy of a target in the pool does score high. Weights play no part.

    Source: definition of CoLoR-Filter in the paper. There the conditional model is tuned whole, on pretraining
    sequences all of whose tokens count, for one mixture of targets, and the best are kept of tau times the budget drawn
    at random; here it is an adapter, answer tokens count, and every row is scored.

    Raises:
        ArtifactMismatch: stores of something other than losses under adapters that were trained on targets.
    """

    def __init__(self, stores: Stores, normalised: bool = False) -> None:
        require("loss_drop", stores, tuned=True, column="loss")
        self._tasks_G = stores.tasks_K[1:]
        self._normalised = normalised

    def columns(self, targets: Columns) -> Columns:
        """Return one column per adapter, in the order of the checkpoints, of no target's row."""
        names = tuple(tasks[0] if len(tasks) == 1 else "loss_drop" for tasks in self._tasks_G)
        return Columns((-1,) * len(names), names, names)

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, G] float32; differences of the stored float32 losses in float64."""
        loss_KB = np.stack([facts["loss"] for facts in pool.facts_KB]).astype(np.float64)
        drop_GB = loss_KB[0] - loss_KB[1:]
        if self._normalised:
            drop_GB /= np.maximum(loss_KB[0], _FLOOR)
        return drop_GB.T.astype(np.float32)
