"""How high the rows that should be found stand in an order by score: recall at k, reciprocal rank, average precision.

Equal scores stand in no order: each measure is its expectation over all orders of them, so that neither the order of
rows nor a constant scorer wins anything. Source: McSherry and Najork, Computing information retrieval performance
measures efficiently in the presence of tied scores, ECIR 2008, section 2.

Shape suffixes: N rows, U different scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Retrieval:
    """What is expected of an order of rows, each in [0, 1]."""

    recall: tuple[float, ...]  # share of the relevant rows among the first k, of each k asked for
    reciprocal_rank: float  # 1 / rank of the first relevant row
    average_precision: float  # mean over relevant rows of the precision at their rank: the area under precision-recall


def measure_retrieval(score_N: np.ndarray, relevant_N: np.ndarray, ks: Sequence[int]) -> Retrieval:
    """Return how well scores, larger first, find the relevant rows. O(N log N).

    Raises:
        ValueError: no row is relevant, a score is not finite, or a k is not positive.
    """
    score_N, relevant_N = np.asarray(score_N), np.asarray(relevant_N, bool)
    relevant = int(relevant_N.sum())
    if not relevant or not np.isfinite(score_N).all() or min(ks, default=1) < 1:
        raise ValueError("retrieval needs a relevant row, finite scores and positive k")
    _, tie_N = np.unique(-score_N, return_inverse=True)
    size_U = np.bincount(tie_N)
    hits_U = np.bincount(tie_N, weights=relevant_N).astype(np.int64)
    before_U, found_U = np.cumsum(size_U) - size_U, np.cumsum(hits_U) - hits_U
    recall = tuple(float((hits_U * np.clip((k - before_U) / size_U, 0, 1)).sum() / relevant) for k in ks)
    first = int(np.flatnonzero(hits_U)[0])
    # Of the rows of a tie, position i is relevant with probability hits / size, and so are those before it.
    place_N = np.arange(1, len(score_N) + 1)
    size_N, hits_N, before_N, found_N = (np.repeat(of_U, size_U) for of_U in (size_U, hits_U, before_U, found_U))
    others_N = (place_N - before_N - 1) * (hits_N - 1) / np.maximum(size_N - 1, 1)
    precision = float((hits_N / size_N * (found_N + others_N + 1) / place_N).sum() / relevant)
    rank = _reciprocal(int(before_U[first]), int(size_U[first]), int(hits_U[first]))
    return Retrieval(recall, rank, precision)


def _reciprocal(before: int, size: int, hits: int) -> float:
    """Return the expectation of 1 / rank of the first of `hits` rows that lie anywhere among `size` after `before`."""
    place_n = np.arange(1, size - hits + 2)
    # That the first lies at place j: none lies before, each time drawn from what is left.
    left_n = size - place_n + 1
    none_n = np.concatenate([[1.0], np.cumprod(1 - hits / left_n[:-1])])
    return float((none_n * hits / left_n / (before + place_n)).sum())
