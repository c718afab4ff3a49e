"""How near the rows of a pool are to each other: which are near-copies, and whether a row agrees with those like it.

A pool of up to some hundred thousand rows is compared row by row with all of itself. Of a larger one every row is
compared with a drawn sample, as large as the same work allows, and near-copies are looked for by `near_copies`; what
that finds of the near-copies of the sample's rows, which are known, says what it finds of all. A million rows of 1,024
numbers take 570 CPU seconds, by 100,000 measured (AMD EPYC): 42 for the search, the rest for the sample.

Shape suffixes: N rows, M rows of the sample, B rows of a block, b of another one, E pairs, F numbers of a vector,
k neighbours.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from influray.evaluation.audit import agreement
from influray.evaluation.copies import joined, near_pairs
from influray.evaluation.near_copies import Rows, near_copies
from influray.store.exact_query import BestRows

COUNTED = 8  # neighbours that a row may agree with
MOST_PRODUCTS = 2**44  # multiplications of comparing rows: some minutes on two cores
LEAST_SAMPLE = 1024
BLOCK_BYTES = 2**24  # of vectors of one block
BLOCK_ROWS = 4096  # most, so that the products of two blocks stay small however narrow the vectors are
LEAST_WIDTH = 128  # numbers: looking through a product takes about as long as so many multiplications
SCORES = 2**20  # looked through at a time
SEED = 12


@dataclass(frozen=True)
class Nearness:
    """`pair_E2` are positions of near-copies; pairs that others join may be left out.

    `sampled` is the number of rows that each was compared with, 0 where it was all. Then there are `known` pairs of
    near-copies with a row of the sample, pairs of equal rows not counted, of which the search joined `found`.
    """

    pair_E2: np.ndarray  # int64
    agreement_N: np.ndarray  # float64, see `evaluation.audit.agreement`
    sampled: int = 0
    known: int = 0
    found: int = 0


def nearness(vectors: Rows, near: float) -> Nearness:
    """Return the near-copies (cosine at least `near`) among the rows, and what each says of its nearest ones.

    A near-copy does not count as a neighbour: it says nothing of the label.
    """
    N, F = len(vectors), max(vectors.dimension, LEAST_WIDTH)
    if N * N * F <= MOST_PRODUCTS:
        return Nearness(*compared(vectors, lambda size: vectors.blocks(size), np.arange(N), near))
    M = min(N, max(LEAST_SAMPLE, MOST_PRODUCTS // (N * F)))
    drawn_M = np.sort(np.random.default_rng(SEED).permutation(N)[:M])
    sample_MF = vectors.take(drawn_M)

    def sample(size: int) -> Iterator[tuple[int, np.ndarray]]:
        return ((start, sample_MF[start : start + size]) for start in range(0, M, size))

    known_E2, agreement_N = compared(vectors, sample, drawn_M, near)
    known_E2 = np.unique(np.sort(known_E2, axis=1), axis=0)  # two drawn rows find each other
    found_E2 = near_copies(vectors, near)
    label_N = joined(found_E2, N)
    different_E = differ(vectors, known_E2)
    hit_E = label_N[known_E2[:, 0]] == label_N[known_E2[:, 1]]
    counts = int(different_E.sum()), int((hit_E & different_E).sum())
    return Nearness(np.concatenate([found_E2, known_E2]), agreement_N, M, *counts)


def compared(
    vectors: Rows, others: Callable[[int], Iterator[tuple[int, np.ndarray]]], other_M: np.ndarray, near: float
) -> tuple[np.ndarray, np.ndarray]:
    """Return (pairs of near-copies int64 [E, 2], agreement float64 [N]) of all rows with those at positions `other_M`.

    `others(size)` yields them in blocks, with the place of the first in `other_M`. Of a row that has more near-copies
    than neighbours that are looked for, the first of the nearest are paired with it.
    """
    k = min(COUNTED + 1, len(other_M))
    pairs, agreements = [np.zeros((0, 2), np.int64)], [np.zeros(0)]
    for row_B, (near_Bk, cosine_Bk), (far_Bk, contrary_Bk) in _ends(vectors, others, k):
        pairs.append(near_pairs(row_B, other_M[near_Bk], cosine_Bk, near))
        own_Bk = (other_M[near_Bk] == row_B[:, None]) | (cosine_Bk >= near)
        far_own_Bk = (other_M[far_Bk] == row_B[:, None]) | (contrary_Bk >= near)
        ends = np.where(own_Bk, np.nan, cosine_Bk), np.where(far_own_Bk, np.nan, contrary_Bk)
        agreements.append(agreement(ends[0], ends[1], COUNTED))
    return np.concatenate(pairs), np.concatenate(agreements)


def near_earlier(first: Rows, second: Rows, near: float) -> tuple[np.ndarray, bool]:
    """Return (the pairs of near-copies that have a row of `second`, whether every two were compared).

    Positions count on from those of `first`, low before high, int64 [E, 2]. Of what joins many rows a pair may be
    left out that others join. More rows than MOST_PRODUCTS allows are looked through by `near_copies`.
    """
    N, n = len(first), len(second)
    both = _Stacked(first, second)
    if n * (N + n) * max(both.dimension, LEAST_WIDTH) > MOST_PRODUCTS:
        pair_E2 = near_copies(both, near)
        return pair_E2[pair_E2[:, 1] >= N], False
    found = [np.zeros((0, 2), np.int64)]
    for others, other_M in ((first, np.arange(N)), (second, np.arange(N, N + n))):  # one may not crowd out the other
        for row_B, (near_Bk, cosine_Bk), _ in _ends(second, others.blocks, min(COUNTED + 1, len(other_M))):
            found.append(near_pairs(N + row_B, other_M[near_Bk], cosine_Bk, near))
    return np.unique(np.sort(np.concatenate(found), axis=1), axis=0), True


class _Stacked:
    """The rows of one after those of another."""

    def __init__(self, first: Rows, second: Rows) -> None:
        self.first, self.second = first, second
        self.dimension = first.dimension

    def __len__(self) -> int:
        return len(self.first) + len(self.second)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        yield from self.first.blocks(size)
        for start, block_BF in self.second.blocks(size):
            yield len(self.first) + start, block_BF

    def take(self, positions: np.ndarray) -> np.ndarray:
        out_BF = np.empty((len(positions), self.dimension), np.float32)
        here_B = positions < len(self.first)
        out_BF[here_B] = self.first.take(positions[here_B])
        out_BF[~here_B] = self.second.take(positions[~here_B] - len(self.first))
        return out_BF


Ends = tuple[np.ndarray, np.ndarray]  # (places of other rows, cosines) [B, k]


def _ends(
    vectors: Rows, others: Callable[[int], Iterator[tuple[int, np.ndarray]]], k: int
) -> Iterator[tuple[np.ndarray, Ends, Ends]]:
    """Yield (positions of a block of rows, the `k` nearest of the others to each, the `k` furthest)."""
    rows = min(BLOCK_ROWS, max(1, BLOCK_BYTES // (4 * vectors.dimension)))
    for start, block_BF in vectors.blocks(rows):
        _make_units(block_BF)
        best, worst = BestRows(len(block_BF), k), BestRows(len(block_BF), k, lowest=True)
        for place, other_bF in others(rows):
            norm_b = np.sqrt(np.einsum("bf,bf->b", other_bF, other_bF))
            cosine_bB = other_bF @ block_BF.T
            cosine_bB /= np.where(norm_b > 0, norm_b, 1)[:, None]
            step = max(1, SCORES // len(block_BF))
            for low in range(0, len(cosine_bB), step):
                best.add(place + low, cosine_bB[low : low + step])
                worst.add(place + low, cosine_bB[low : low + step])
        yield np.arange(start, start + len(block_BF)), best.sorted(), worst.sorted()


def differ(vectors: Rows, pair_E2: np.ndarray) -> np.ndarray:
    """Return whether the rows of each pair differ in any number, bool [E]."""
    found_E = np.zeros(len(pair_E2), bool)
    step = max(1, BLOCK_BYTES // (8 * vectors.dimension))
    for start in range(0, len(pair_E2), step):
        low_eF, high_eF = (vectors.take(side) for side in pair_E2[start : start + step].T)
        found_E[start : start + step] = (low_eF != high_eF).any(axis=1)
    return found_E


def _make_units(row_BF: np.ndarray) -> None:
    norm_B = np.sqrt(np.einsum("bf,bf->b", row_BF, row_BF))
    row_BF /= np.where(norm_B > 0, norm_B, 1)[:, None]
