"""Products of stored feature rows with a few dense ones, in pieces that stay small.

Shape suffixes: B pool rows of a block, T target columns, D feature.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from influray.protocols import Arrays, FeatureRows
from influray.store.encodings import widen, widened

BLOCK_ROWS = 1024  # converted to float32 at a time: 32 MiB at D = 8192


def add_products(
    out_BT: np.ndarray, pool_BD: np.ndarray, target_TD: np.ndarray, norm_B: np.ndarray | None = None
) -> None:
    """Add the inner products of rows of `pool_BD`, float16 or float32, times `norm_B` where given, and `target_TD`."""
    target_DT = np.ascontiguousarray(target_TD, dtype=np.float32).T
    half = pool_BD.dtype == np.float16
    space_bD = np.empty((min(BLOCK_ROWS, len(pool_BD)) if half else 0, pool_BD.shape[1]), np.float32)
    for start in range(0, len(out_BT), BLOCK_ROWS):
        here = slice(start, start + BLOCK_ROWS)
        block_bD = pool_BD[here]
        if half:
            widen(block_bD, space_bD[: len(block_bD)])
            block_bD = space_bD[: len(block_bD)]
        block_bT = block_bD @ target_DT
        out_BT[here] += block_bT if norm_B is None else block_bT * norm_B[here, None]


def fitted_products(pool: FeatureRows, state: Arrays, weights: Sequence[float]) -> np.ndarray:
    """Return the sum over checkpoints of w_k * plain pool rows times the fitted targets `target_k`, float32 [B, T]."""
    score_BT = np.zeros((len(pool), len(state["target_0"])), np.float32)
    for k, weight in enumerate(weights):
        target_TD = state[f"target_{k}"] * np.float32(weight)
        add_products(score_BT, pool.feature_KBD[k], target_TD, pool.facts_KB[k]["norm"])
    return score_BT


def plain_rows(rows: FeatureRows, checkpoint: int) -> np.ndarray:
    """Return the features at a checkpoint (from 0) as they were before they were made units, float64 [B, D]."""
    plain_BD = widened(rows.feature_KBD[checkpoint], np.float64)
    plain_BD *= rows.facts_KB[checkpoint]["norm"][:, None]
    return plain_BD
