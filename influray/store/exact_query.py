"""Exact answers: the rows that help and harm a query most, and the moments of its influence, in one blocked pass.

Shape suffixes: N pool rows, Q queries, B rows of a block, k answers, F numbers of a vector.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Protocol

import numpy as np
from threadpoolctl import ThreadpoolController

from influray.protocols import DataError
from influray.store.moments import ColumnMoments, merge_in_order

if TYPE_CHECKING:
    import torch

GROUP_SCORES = 2**18  # looked through at a time: fewer, and the calls take longer than the work
BLOCK_SCORES = 2**21  # most that a product makes at a time
WAITING = 1  # times k: candidates that wait before the best of them are taken


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


def exact_query(vectors: Vectors, query_QF: np.ndarray, k: int) -> Answers:
    """Return the exact answers of all vectors to queries [Q, F].

    Products are float32, as in the attribution matrix; moments as `group_moments`. Memory is that of a block and of
    the answers.

    Raises:
        DataError: no vectors, queries of another width, or a number that is not finite.
    """
    import torch

    query_QF = check_queries(query_QF, vectors.dimension, len(vectors.rows))
    rows, workers = len(vectors.rows), torch.get_num_threads()
    query_FQ = np.ascontiguousarray(query_QF.T)
    k = min(k, rows)
    shape = _Shape.of(rows, len(query_QF), vectors, workers)
    scans = [_Scan(vectors, query_FQ, k, shape) for _ in range(workers)]
    starts = range(0, rows, shape.taken)

    def work(place: int) -> list[list[ColumnMoments]]:
        found = []
        for first in starts[place::workers]:
            for other in scans[:place] + scans[place + 1 :]:
                scans[place].learn(other)
            found.append(scans[place].look(first, min(shape.taken, rows - first)))
        return found

    # Threads that share a product wait for each other at its end, and those of OpenBLAS take a core while they do.
    with ThreadPoolExecutor(workers) as threads, one_torch_thread(), _one_blas_thread(len(query_QF)):
        found = list(threads.map(work, range(workers)))
    whole = merge_in_order(itertools.chain.from_iterable(found[i % workers][i // workers] for i in range(len(starts))))
    for other in scans[1:]:
        scans[0].merge(other)
    best, worst = scans[0].helpful.sorted(), scans[0].harmful.sorted()
    return Answers(vectors.rows[best[0]], best[1], vectors.rows[worst[0]], worst[1], whole.mean, whole.std, exact=True)


@dataclass(frozen=True)
class _Shape:
    """Rows that a thread takes, multiplies and looks through at a time."""

    taken: int
    step: int
    group: int

    @staticmethod
    def of(rows: int, queries: int, vectors: Vectors, workers: int) -> _Shape:
        # Products want large blocks, what looks through their scores wants to find them in the cache.
        group = max(256, GROUP_SCORES // queries)
        step = max(256, vectors.block_bytes // (4 * vectors.dimension))
        taken = min(max(group, BLOCK_SCORES // queries), -(-rows // workers))
        return _Shape(taken, min(step, taken), min(group, taken))


class _Scan:
    """What one thread finds in the rows that it takes."""

    def __init__(self, vectors: Vectors, query_FQ: np.ndarray, k: int, shape: _Shape) -> None:
        import torch

        queries = query_FQ.shape[1]
        self._vectors, self._query_FQ, self._shape = vectors, query_FQ, shape
        self._space_BF = np.empty((shape.step, vectors.dimension), np.float32)
        self._score_RQ = torch.empty(shape.taken, queries)
        self._space_GQ = torch.empty(shape.group, queries)
        self.helpful, self.harmful = BestRows(queries, k), BestRows(queries, k, lowest=True)

    def look(self, first: int, count: int) -> list[ColumnMoments]:
        """Take in the rows from position `first`, and return the moments of their groups."""
        for low in range(0, count, self._shape.step):
            high = min(low + self._shape.step, count)
            block_BF = self._vectors.block(first + low, self._space_BF[: high - low])
            _product(block_BF, self._query_FQ, self._score_RQ[low:high].numpy())
        found = []
        for low in range(0, count, self._shape.group):
            score_GQ = self._score_RQ[low : min(low + self._shape.group, count)]
            self.helpful.add(first + low, score_GQ.numpy())
            self.harmful.add(first + low, score_GQ.numpy())
            found.append(group_moments(score_GQ, self._space_GQ[: len(score_GQ)]))
        return found

    def learn(self, other: _Scan) -> None:
        """Leave out what cannot be among the best for what another has found."""
        self.helpful.learn(other.helpful)
        self.harmful.learn(other.harmful)

    def merge(self, other: _Scan) -> None:
        """Take in what another has found."""
        self.helpful.merge(*other.helpful.sorted())
        self.harmful.merge(*other.harmful.sorted())


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


@contextmanager
def _one_blas_thread(queries: int) -> Iterator[None]:
    if queries == 1:  # no product of BLAS is taken
        yield
        return
    with _blas().limit(limits=1, user_api="blas"):
        yield


@cache
def _blas() -> ThreadpoolController:
    return ThreadpoolController()  # which looks through all libraries: some milliseconds


def _product(block_BF: np.ndarray, query_FQ: np.ndarray, out_BQ: np.ndarray) -> None:
    """Write the products of a block with all queries to `out_BQ`."""
    if query_FQ.shape[1] > 1:
        np.matmul(block_BF, query_FQ, out=out_BQ)  # in less time than torch's (AMD EPYC)
    else:
        # einsum takes 1.1 times as long as reading the block, numpy's product 1.3 and torch's 1.4 (one core, 256 MB);
        # its sum for a row does not depend on where blocks end.
        np.einsum("bf,f->b", block_BF, query_FQ[:, 0], out=out_BQ[:, 0])


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
    """The k highest scores, or the lowest, of each of Q queries over blocks in ascending positions.

    Equals go to the lower position.

    What beats the least of the kept ones waits until there is enough of it to be worth a selection: that happens a
    number of times that grows with the logarithm of the rows, and costs less than finding it.
    """

    def __init__(self, queries: int, k: int, lowest: bool = False) -> None:
        self._k, self._lowest = k, lowest
        self._score_QE = np.empty((queries, 0), np.float32)  # where the lowest are wanted, what they are times -1
        self._position_QE = np.empty((queries, 0), np.int64)  # ascending in each line
        self._least_Q = np.full(queries, -np.inf, np.float32)  # of the kept ones, once they are k
        self._floor_Q = self._least_Q  # below it nothing is among the best, by what others keep
        self._waiting: list[tuple[np.ndarray, np.ndarray, np.ndarray]] = []  # (query, position, score) of each
        self._held = 0

    def add(self, start: int, score_BQ: np.ndarray) -> None:
        """Take in the scores of the positions from `start`, which follow on all before."""
        if self._score_QE.shape[1] == self._k:
            # What only equals the last one kept would stand behind it.
            least_Q = np.maximum(self._least_Q, self._floor_Q)
            hit_BQ = score_BQ < -least_Q if self._lowest else score_BQ > least_Q
        elif len(score_BQ) > self._k:
            place = self._k - 1 if self._lowest else len(score_BQ) - self._k
            kth_Q = np.partition(np.ascontiguousarray(score_BQ.T), place, axis=1)[:, place]
            hit_BQ = score_BQ <= kth_Q if self._lowest else score_BQ >= kth_Q
        else:
            hit_BQ = np.ones(score_BQ.shape, bool)
        hit = np.flatnonzero(hit_BQ)
        if not len(hit):
            return
        line_E = hit // score_BQ.shape[1]  # divmod takes four times as long
        query_E = hit - line_E * score_BQ.shape[1]
        score_E = score_BQ[line_E, query_E]
        self._waiting.append((query_E, line_E + start, -score_E if self._lowest else score_E))
        self._held += len(hit)
        if self._score_QE.shape[1] < self._k or self._held > WAITING * self._k * len(self._least_Q):
            self._settle()

    def learn(self, other: BestRows) -> None:
        """Wait for nothing that is lower than the k scores that another keeps, of other rows that are to be merged."""
        self._floor_Q = np.maximum(self._floor_Q, np.nextafter(other._least_Q, np.float32(-np.inf)))

    def merge(self, position_QE: np.ndarray, score_QE: np.ndarray) -> None:
        """Take in candidates [Q, E]: by descending score, then ascending position, the first k are kept."""
        self._settle()
        score_QE = -score_QE if self._lowest else score_QE
        position_QE = np.concatenate([self._position_QE, position_QE], axis=1)
        score_QE = np.concatenate([self._score_QE, score_QE], axis=1)
        order_QE = np.argsort(position_QE, axis=1, kind="stable")
        self._keep(np.take_along_axis(position_QE, order_QE, 1), np.take_along_axis(score_QE, order_QE, 1))

    def sorted(self) -> tuple[np.ndarray, np.ndarray]:
        """Return (positions int64 [Q, k], scores float32 [Q, k]), the highest first, or the lowest."""
        self._settle()
        order_QE = np.lexsort((self._position_QE, -self._score_QE), axis=1)
        score_Qk = np.take_along_axis(self._score_QE, order_QE, 1)
        return np.take_along_axis(self._position_QE, order_QE, 1), -score_Qk if self._lowest else score_Qk

    def _settle(self) -> None:
        """Select among what waits."""
        if not self._waiting:
            return
        query_E, position_E, score_E = (np.concatenate(one) for one in zip(*self._waiting, strict=True))
        self._waiting, self._held = [], 0
        if len(self._least_Q) <= 2**16:
            query_E = query_E.astype(np.uint16)  # which numpy sorts by counting, in a seventh of the time
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
