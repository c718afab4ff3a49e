"""A = sum over checkpoints of w_k * G_k V_k^T: the influence of LESS, arXiv 2402.04333, before any reduction.

Shape suffixes: B pool rows of a block, T targets, D feature, K checkpoints.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from influray.protocols import ConfigError

BLOCK_ROWS = 1024  # converted to float32 at a time: 32 MiB at D = 8192


class InnerProduct:
    """Inner products of stored unit rows, weighted by checkpoint. `weights` are scaled to sum to 1.

    Raises:
        ConfigError: no weight, or one that is not a finite number above 0.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = _normalised(weights)

    def score(self, pool_KBD: Sequence[np.ndarray], target_KTD: Sequence[np.ndarray]) -> np.ndarray:
        """Return A [B, T] float32 of unit rows [B, D] and [T, D], one entry of each sequence per checkpoint.

        Products and sums are float32, checkpoints in their order. A matrix product may round a row otherwise in
        a block of another height: bytes repeat for the same block, values for any.
        """
        assert len(pool_KBD) == len(target_KTD) == len(self.weights), "one pool and one target block per checkpoint"
        score_BT = np.zeros((len(pool_KBD[0]), len(target_KTD[0])), np.float32)
        for weight, pool_BD, target_TD in zip(self.weights, pool_KBD, target_KTD, strict=True):
            target_DT = np.ascontiguousarray(target_TD, dtype=np.float32).T
            for start in range(0, len(score_BT), BLOCK_ROWS):
                block_bD = np.ascontiguousarray(pool_BD[start : start + BLOCK_ROWS], dtype=np.float32)
                score_BT[start : start + BLOCK_ROWS] += np.float32(weight) * (block_bD @ target_DT)
        return score_BT


def checkpoint_weights(weights: str | Sequence[float], mean_learning_rates: Sequence[float]) -> tuple[float, ...]:
    """Return one weight per checkpoint, summing to 1.

    `weights` is "learning_rate" (the checkpoints' mean learning rates, as LESS has it), "uniform", or a list.

    Raises:
        ConfigError: a list of another length, a weight that is not above 0, or another word.
    """
    count = len(mean_learning_rates)
    if weights == "learning_rate":
        return _normalised(mean_learning_rates)
    if weights == "uniform":
        return _normalised([1.0] * count)
    if isinstance(weights, str):
        raise ConfigError(
            f"attribution.weights: found {weights!r}, expected learning_rate, uniform or a list of {count} numbers"
        )
    if len(weights) != count:
        raise ConfigError(f"attribution.weights: {len(weights)} weights for {count} checkpoints; give one for each")
    return _normalised(weights)


def _normalised(weights: Sequence[float]) -> tuple[float, ...]:
    values = [float(weight) for weight in weights]
    for index, value in enumerate(values):
        if not 0 < value < math.inf:
            raise ConfigError(f"attribution.weights.{index}: found {value!r}, expected a number above 0")
    if not values:
        raise ConfigError("attribution.weights: there is no checkpoint to weigh")
    total = math.fsum(values)
    return tuple(value / total for value in values)
