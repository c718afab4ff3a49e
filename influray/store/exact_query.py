"""Exact answers: the rows that help and harm a query most, and the moments of its influence, in one blocked pass.

Shape suffixes: N pool rows, Q queries, B rows of a block, k answers, F numbers of a vector.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np

from influray.protocols import DataError
from influray.store.moments import merge_in_order, moments_of

BLOCK_BYTES = 2**23  # of a block of vectors: it stays in the cache between conversion and product
GROUP_SCORES = 2**18  # looked through at a time: fewer, and the calls take longer than the work


class Vectors(Protocol):
    """Rows that can be asked (store.vectors)."""

    dimension: int

    @property
    def rows(self) -> np.ndarray: ...

    def read(self, start: int, out_BF: np.ndarray) -> None: ...


@dataclass(frozen=True)
class Answers:
    """What the pool says to Q queries; k is at most the number of its rows.

    Equal scores stand by ascending row. `mean` and `std` (ddof 0) are those of the influence over all N rows: they
    standardise it.
    """

    helpful_rows: np.ndarray  # int64 [Q, k], catalogue rows
    helpful_scores: np.ndarray  # float32 [Q, k], descending
    harmful_rows: np.ndarray  # int64 [Q, k]
    harmful_scores: np.ndarray  # float32 [Q, k], ascending
    mean: np.ndarray  # float64 [Q]
    std: np.ndarray  # float64 [Q]
    exact: bool  # False: rows may be missing
    std_error: np.ndarray | None = None  # float64 [Q], standard error of `std` where a sample estimates it


def exact_query(vectors: Vectors, query_QF: np.ndarray, k: int) -> Answers:
    """Return the exact answers of all vectors to queries [Q, F].

    Products are float32, as in the attribution matrix; moments float64. Memory is that of a block and of the answers.

    Raises:
        DataError: no vectors, queries of another width, or a number that is not finite.
    """
    query_QF = check_queries(query_QF, vectors.dimension, len(vectors.rows))
    rows, queries = len(vectors.rows), len(query_QF)
    query_FQ = np.ascontiguousarray(query_QF.T)
    k = min(k, rows)
    helpful, harmful = BestRows(queries, k), BestRows(queries, k)
    block_BF = np.empty((min(rows, max(256, BLOCK_BYTES // (4 * vectors.dimension))), vectors.dimension), np.float32)
    step = len(block_BF)
    score_GQ = np.empty((step * max(1, -(-GROUP_SCORES // (step * queries))), queries), np.float32)
    moments = []
    for first in range(0, rows, len(score_GQ)):
        count = min(len(score_GQ), rows - first)
        for low in range(0, count, step):
            high = min(low + step, count)
            vectors.read(first + low, block_BF[: high - low])
            np.matmul(block_BF[: high - low], query_FQ, out=score_GQ[low:high])
        helpful.add(first, score_GQ[:count])
        harmful.add(first, -score_GQ[:count])
        moments.append(moments_of(score_GQ[:count], vectors.rows[first : first + count]))
    whole = merge_in_order(moments)
    best, worst = helpful.sorted(), harmful.sorted()
    return Answers(vectors.rows[best[0]], best[1], vectors.rows[worst[0]], -worst[1], whole.mean, whole.std, exact=True)


def check_queries(query_QF: np.ndarray, dimension: int, rows: int) -> np.ndarray:
    """Return queries as float32 [Q, F]. Raises DataError: another width, not finite, or there is no row to ask."""
    query_QF = np.asarray(query_QF, np.float32)
    if query_QF.ndim != 2 or query_QF.shape[1] != dimension:
        raise DataError(
            f"query: features of shape {query_QF.shape}, but the pool's vectors have {dimension} numbers; "
            "take the query's features with the model and the projector of the run"
        )
    if not np.isfinite(query_QF).all():
        raise DataError("query: its features are not finite")
    if not rows:
        raise DataError("query: no pool row has a feature at every checkpoint; the quarantine says why")
    return query_QF


class BestRows:
    """The k highest scores of each of Q queries over blocks in ascending positions; equals go to the lower one."""

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._score_QE = np.empty((queries, 0), np.float32)
        self._position_QE = np.empty((queries, 0), np.int64)

    def add(self, start: int, score_BQ: np.ndarray) -> None:
        """Take in the scores of the positions from `start`, which follow on all before."""
        if self._score_QE.shape[1] == self._k:
            # What only equals the last one kept would stand behind it.
            hit = np.flatnonzero(score_BQ > self._score_QE[:, -1])
        elif len(score_BQ) > self._k:
            hit = np.flatnonzero(score_BQ >= np.partition(score_BQ, -self._k, axis=0)[-self._k])
        else:
            hit = np.arange(score_BQ.size)
        if not len(hit):
            return
        line_E, query_E = np.divmod(hit, score_BQ.shape[1])
        order_E = np.argsort(query_E, kind="stable")
        count_Q = np.bincount(query_E, minlength=score_BQ.shape[1])
        cuts = np.concatenate([[0], np.cumsum(count_Q)])
        place_E = np.arange(len(hit)) - np.repeat(cuts[:-1], count_Q)
        line_E, query_E = line_E[order_E], query_E[order_E]
        new_QE = np.full((len(count_Q), int(count_Q.max())), -np.inf, np.float32)
        position_QE = np.full(new_QE.shape, np.iinfo(np.int64).max)
        new_QE[query_E, place_E] = score_BQ[line_E, query_E]
        position_QE[query_E, place_E] = line_E + start
        self.merge(position_QE, new_QE)

    def merge(self, position_QE: np.ndarray, score_QE: np.ndarray) -> None:
        """Take in candidates [Q, E]: by descending score, then ascending position, the first k are kept."""
        position_QE = np.concatenate([self._position_QE, position_QE], axis=1)
        score_QE = np.concatenate([self._score_QE, score_QE], axis=1)
        order_QE = np.lexsort((position_QE, -score_QE), axis=1)[:, : self._k]
        self._position_QE = np.take_along_axis(position_QE, order_QE, axis=1)
        self._score_QE = np.take_along_axis(score_QE, order_QE, axis=1)

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (positions int64 [Q, k], scores float32 [Q, k]), highest first."""
        return self._position_QE, self._score_QE
