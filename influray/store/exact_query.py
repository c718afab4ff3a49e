"""Exact answers: the rows that help and harm a query most, and the moments of its influence, in one blocked pass.

Shape suffixes: N pool rows, Q queries, B rows of a block, k answers, F numbers of a vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np

from influray.protocols import DataError
from influray.store.moments import ColumnMoments, merge_in_order

if TYPE_CHECKING:
    import torch

GROUP_SCORES = 2**18  # looked through at a time: fewer, and the calls take longer than the work
BLOCK_SCORES = 2**21  # most that a product makes at a time
WAITING = 2  # times k: candidates that wait before the best of them are taken


class Vectors(Protocol):
    """Rows that can be asked (store.vectors)."""

    dimension: int
    block_bytes: int  # of the vectors that are best taken at a time

    @property
    def rows(self) -> np.ndarray: ...

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        """Return the vectors from position `start`, as many as `space_BF` has lines: in it, or where they lie."""
        ...


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

    Products are float32, as in the attribution matrix; moments as `group_moments`. Memory is that of a block and of
    the answers.

    Raises:
        DataError: no vectors, queries of another width, or a number that is not finite.
    """
    import torch

    query_QF = check_queries(query_QF, vectors.dimension, len(vectors.rows))
    rows, queries = len(vectors.rows), len(query_QF)
    query_FQ = torch.from_numpy(np.ascontiguousarray(query_QF.T))
    k = min(k, rows)
    helpful, harmful = BestRows(queries, k), BestRows(queries, k)
    # Products want large blocks, what looks through their scores wants to find them in the cache.
    group = max(256, GROUP_SCORES // queries)
    step = min(rows, max(256, vectors.block_bytes // (4 * vectors.dimension)), max(group, BLOCK_SCORES // queries))
    taken = step - step % group if step > group else group - group % step
    group = min(group, taken)
    space_BF = np.empty((step, vectors.dimension), np.float32)
    score_RQ = torch.empty(taken, queries)
    space_GQ = torch.empty(group, queries)
    moments = []
    workers = torch.get_num_threads()
    with ThreadPoolExecutor(workers) as threads, one_torch_thread():
        for first in range(0, rows, taken):
            count = min(taken, rows - first)
            for low in range(0, count, step):
                high = min(low + step, count)
                block_BF = vectors.block(first + low, space_BF[: high - low])
                _product(block_BF, query_FQ, score_RQ[low:high], threads, workers)
            for low in range(0, count, group):
                score_GQ = score_RQ[low : min(low + group, count)]
                space = space_GQ[: len(score_GQ)]
                helpful.add(first + low, score_GQ.numpy())
                harmful.add(first + low, torch.neg(score_GQ, out=space).numpy())
                moments.append(group_moments(score_GQ, space))
    whole = merge_in_order(moments)
    best, worst = helpful.sorted(), harmful.sorted()
    return Answers(vectors.rows[best[0]], best[1], vectors.rows[worst[0]], -worst[1], whole.mean, whole.std, exact=True)


@contextmanager
def one_torch_thread() -> Iterator[None]:
    """Leave torch one thread while the block runs."""
    # What is left to torch is small: its threads would wait for each other, and for those of numpy's product, longer
    # than they work (two threads on a busy machine: seven times as long in all).
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _product(
    block_BF: np.ndarray, query_FQ: torch.Tensor, out_BQ: torch.Tensor, threads: ThreadPoolExecutor, workers: int
) -> None:
    """Write the products of a block with all queries to `out_BQ`."""
    if query_FQ.shape[1] > 1:
        np.matmul(block_BF, query_FQ.numpy(), out=out_BQ.numpy())  # in less time than torch's (AMD EPYC)
        return
    # einsum takes 1.1 times as long as reading the block, numpy's product 1.3 and torch's 1.4 (one core, 256 MB); its
    # sum for a row does not depend on where blocks end. It gives the interpreter's lock back, so that threads share.
    query_F, out_B = query_FQ[:, 0].numpy(), out_BQ[:, 0].numpy()
    cuts = np.linspace(0, len(block_BF), workers + 1, dtype=int).tolist()
    parts = [slice(*ends) for ends in itertools.pairwise(cuts)]
    list(threads.map(lambda part: np.einsum("bf,f->b", block_BF[part], query_F, out=out_B[part]), parts))


def group_moments(score_GQ: torch.Tensor, space_GQ: torch.Tensor) -> ColumnMoments:
    """Return the moments of a group of scores, which are float32; `space_GQ` is overwritten.

    Deviations from the group's own rounded mean are summed in float32, by torch as a cascade, and all else is float64:
    with a fresh mean for each group the error is below 1e-6 of the standard deviation.
    """
    import torch

    shift_Q = score_GQ.mean(dim=0)
    torch.sub(score_GQ, shift_Q, out=space_GQ)
    offset_Q = space_GQ.sum(dim=0).double().numpy() / len(score_GQ)
    square_Q = space_GQ.square_().sum(dim=0).double().numpy()
    m2_Q = np.maximum(square_Q - len(score_GQ) * offset_Q * offset_Q, 0.0)
    return ColumnMoments(len(score_GQ), shift_Q.double().numpy(), offset_Q, m2_Q, np.zeros(len(m2_Q)))


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
    """The k highest scores of each of Q queries over blocks in ascending positions; equals go to the lower one.

    What beats the least of the kept ones waits until there is enough of it to be worth a selection: that happens a
    number of times that grows with the logarithm of the rows, and costs less than finding it.
    """

    def __init__(self, queries: int, k: int) -> None:
        self._k = k
        self._score_QE = np.empty((queries, 0), np.float32)
        self._position_QE = np.empty((queries, 0), np.int64)  # ascending in each line
        self._least_Q = np.full(queries, -np.inf, np.float32)
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (query, position, score) of each
        self._held = 0

    def add(self, start: int, score_BQ: np.ndarray) -> None:
        """Take in the scores of the positions from `start`, which follow on all before."""
        if self._score_QE.shape[1] == self._k:
            # What only equals the last one kept would stand behind it.
            hit = np.flatnonzero(score_BQ > self._least_Q)
        elif len(score_BQ) > self._k:
            place = len(score_BQ) - self._k
            hit = np.flatnonzero(score_BQ >= np.partition(np.ascontiguousarray(score_BQ.T), place, axis=1)[:, place])
        else:
            hit = np.arange(score_BQ.size)
        if not len(hit):
            return
        line_E, query_E = np.divmod(hit, score_BQ.shape[1])
        self._waiting.append((query_E, line_E + start, score_BQ.reshape(-1)[hit]))
        self._held += len(hit)
        if self._score_QE.shape[1] < self._k or self._held > WAITING * self._k * len(self._least_Q):
            self._settle()

    def merge(self, position_QE: np.ndarray, score_QE: np.ndarray) -> None:
        """Take in candidates [Q, E]: by descending score, then ascending position, the first k are kept."""
        self._settle()
        position_QE = np.concatenate([self._position_QE, position_QE], axis=1)
        score_QE = np.concatenate([self._score_QE, score_QE], axis=1)
        order_QE = np.argsort(position_QE, axis=1, kind="stable")
        self._keep(np.take_along_axis(position_QE, order_QE, 1), np.take_along_axis(score_QE, order_QE, 1))

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (positions int64 [Q, k], scores float32 [Q, k]), highest first."""
        self._settle()
        order_QE = np.lexsort((self._position_QE, -self._score_QE), axis=1)
        return np.take_along_axis(self._position_QE, order_QE, 1), np.take_along_axis(self._score_QE, order_QE, 1)

    def _settle(self) -> None:
        """Select among what waits."""
        if not self._waiting:
            return
        query_E, position_E, score_E = (np.concatenate(one) for one in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        order_E = np.argsort(query_E, kind="stable")
        count_Q = np.bincount(query_E, minlength=len(self._least_Q))
        first_Q = np.cumsum(count_Q) - count_Q
        query_E = query_E[order_E]
        place_E = np.arange(len(query_E)) - first_Q[query_E]
        score_QE = np.full((len(count_Q), int(count_Q.max())), -np.inf, np.float32)
        position_QE = np.full(score_QE.shape, np.iinfo(np.int64).max)
        score_QE[query_E, place_E] = score_E[order_E]
        position_QE[query_E, place_E] = position_E[order_E]
        self._keep(
            np.concatenate([self._position_QE, position_QE], axis=1),
            np.concatenate([self._score_QE, score_QE], axis=1),
        )

    def _keep(self, position_QE: np.ndarray, score_QE: np.ndarray) -> None:
        """Keep the best k of each line; positions ascend."""
        Q, E = score_QE.shape
        if self._k < E:
            kth_Q1 = np.partition(score_QE, E - self._k, axis=1)[:, E - self._k, None]
            above_QE, equal_QE = score_QE > kth_Q1, score_QE == kth_Q1
            room_Q1 = self._k - above_QE.sum(axis=1, keepdims=True)
            kept_QE = above_QE | (equal_QE & (equal_QE.cumsum(axis=1) <= room_Q1))
            position_QE, score_QE = (one[kept_QE].reshape(Q, self._k) for one in (position_QE, score_QE))
        self._position_QE, self._score_QE = position_QE, score_QE
        if score_QE.shape[1] == self._k:
            self._least_Q = score_QE.min(axis=1)
