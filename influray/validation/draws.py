"""Which rows an experiment trains on: functions of the seed and of the candidate rows alone.

Shape suffixes: N candidate rows.
"""

from __future__ import annotations

import numpy as np

from influray.config_base import as_written
from influray.model.step_plan import seeded_order

# What is drawn; the second number of every seed, so that no draw repeats another's.
CANDIDATES, SUBSETS, RANDOM_ROWS, LEFT_OUT, SCORES = range(5)


def candidates(row_N: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Return so many of the rows, ascending; all of them where there are no more."""
    if number >= len(row_N):
        return row_N
    return np.sort(row_N[seeded_order(len(row_N), seed, CANDIDATES)[:number]])


def subset(row_N: np.ndarray, share: float, seed: int, number: int) -> np.ndarray:
    """Return subset `number` of the rows, ascending: `share` of them, rounded down, but one at least.

    It does not depend on how many subsets there are: more of them keep the retrainings of those before.
    """
    size = max(1, int(as_written(share) * len(row_N)))
    return np.sort(row_N[seeded_order(len(row_N), seed, SUBSETS, number)[:size]])


def random_rows(row_N: np.ndarray, token_N: np.ndarray, tokens: int, seed: int, *number: int) -> np.ndarray:
    """Return random rows, ascending, that have as nearly `tokens` tokens as whole rows can, one row at least."""
    order_N = seeded_order(len(row_N), seed, RANDOM_ROWS, *number)
    sum_N = np.cumsum(token_N[order_N])
    count = int(np.searchsorted(sum_N, tokens)) + 1  # the first that has as many
    if count > len(row_N) or (count > 1 and tokens - sum_N[count - 2] <= sum_N[count - 1] - tokens):
        count -= 1
    return np.sort(row_N[order_N[:count]])


def groups(row_N: np.ndarray, number: int, size: int, seed: int) -> list[np.ndarray]:
    """Return so many groups of so many rows, ascending, no row in two of them."""
    order_N = seeded_order(len(row_N), seed, LEFT_OUT)
    return [np.sort(row_N[order_N[n * size : (n + 1) * size]]) for n in range(number)]


def random_scores(rows: int, columns: int, seed: int) -> np.ndarray:
    """Return scores that know nothing, uniform in [0, 1), float64 [rows, columns]."""
    raw = np.random.PCG64(np.random.SeedSequence((seed, SCORES))).random_raw(rows * columns)
    return ((raw >> 11).astype(np.float64) * 2.0**-53).reshape(rows, columns)
