"""Near-copies in a pool that is too large to compare every row with every other.

The signs of random projections of two rows differ with probability angle / pi each. Rows, as units about their mean,
are sorted by such signs, again and again by other ones; near-copies share long beginnings and come to stand side by
side. Neighbours whose signs differ little are compared exactly, so that all that is found is right; what is missed is
for `neighbours` to measure. Rows that are equal number by number are found by a hash, whatever the signs say.

Source: M. Charikar, Similarity estimation techniques from rounding algorithms, STOC 2002 (random hyperplanes, sorted).
The mean is ours: rows that all point one way differ by few signs, near-copies or not.

Shape suffixes: N rows, n rows of which none is there twice, B rows of a block, O orders, P projections, F numbers of a
vector, E pairs.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from influray.evaluation.copies import joined

ORDERS = 16  # times that the rows are sorted
SIGNS = 64  # that they are sorted by each time: a word
WINDOW = 16  # rows behind each in an order that it is compared with
FIRST_WORDS = 3  # that are compared before all are
SLACK = 4.0  # standard deviations by which the signs of near-copies may differ more than they do on average
BLOCK_BYTES = 2**24  # of vectors that are in memory at a time
SEED = 11


class Rows(Protocol):
    """Vectors by position (store.vectors)."""

    dimension: int

    def __len__(self) -> int: ...

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]: ...

    def take(self, positions: np.ndarray) -> np.ndarray: ...


def near_copies(vectors: Rows, near: float) -> np.ndarray:
    """Return pairs of positions whose cosine is at least `near`, int64 [E, 2], low before high.

    Pairs that others already join are left out: what is joined by them is what counts. Three passes over the vectors'
    files, 8 bytes a row and order; the time grows with N F.
    """
    signs = row_signs(vectors)
    N = len(signs.hash_N)
    copy_E2 = equal_hashes(signs.hash_N)
    found = [copy_E2[cosines(vectors, copy_E2) >= near]]
    label_N = joined(found[0], N)
    alone_N = np.ones(N, bool)
    alone_N[copy_E2[:, 1]] = False  # the first of equal ones stands for all
    row_n = np.flatnonzero(alone_N)
    word_On, spread_n = signs.word_ON[:, row_n], signs.spread_N[row_n]
    tried = np.zeros(0, np.int64)
    for order in range(ORDERS):
        pair_E2, differ_E = side_by_side(word_On, spread_n, order, near)
        pair_E2 = np.sort(row_n[pair_E2], axis=1)
        apart_E = label_N[pair_E2[:, 0]] != label_N[pair_E2[:, 1]]
        code_E = pair_E2[apart_E] @ np.array([N, 1])
        new_E = ~np.isin(code_E, tried)
        code_E = code_E[new_E][np.argsort(differ_E[apart_E][new_E], kind="stable")][:N]
        pair_E2 = np.stack(np.divmod(code_E, N), axis=1)
        close_E = cosines(vectors, pair_E2) >= near
        tried = np.union1d(tried, code_E[~close_E])
        found.append(pair_E2[close_E])
        label_N = joined(np.concatenate(found), N)
    return np.concatenate(found)


@dataclass(frozen=True)
class Signs:
    """What is kept of each row; `spread_N` is its squared distance, as a unit, from the mean of all."""

    word_ON: np.ndarray  # uint64
    spread_N: np.ndarray  # float32
    hash_N: np.ndarray  # uint64; equal rows have equal ones


def row_signs(vectors: Rows) -> Signs:
    """Return the signs of projections, drawn by the seed, of the rows as units about their mean."""
    N, F, P = len(vectors), vectors.dimension, ORDERS * SIGNS
    size = max(1, BLOCK_BYTES // (4 * max(F, P)))  # of the products, where vectors are narrower than they
    mean_F = np.zeros(F)
    for _, block_BF in vectors.blocks(size):
        mean_F += (block_BF / _norms(block_BF)[:, None]).sum(axis=0, dtype=np.float64)
    mean_F = (mean_F / max(N, 1)).astype(np.float32)
    generator = np.random.default_rng(SEED)
    plane_FP = generator.standard_normal((F, P), np.float32)
    factor_F = generator.integers(0, 2**63, F, np.uint64) * np.uint64(2) + np.uint64(1)
    word_ON, hash_N = np.empty((ORDERS, N), np.uint64), np.empty(N, np.uint64)
    spread_N = np.empty(N, np.float32)
    for start, block_BF in vectors.blocks(size):
        here = slice(start, start + len(block_BF))
        hash_N[here] = block_BF.view(np.uint32) @ factor_F
        block_BF /= _norms(block_BF)[:, None]
        block_BF -= mean_F
        spread_N[here] = np.einsum("bf,bf->b", block_BF, block_BF)
        bits_Bp = np.packbits(block_BF @ plane_FP > 0, axis=1)
        word_ON[:, here] = bits_Bp.view(np.uint64).T
    return Signs(word_ON, spread_N, hash_N)


def equal_hashes(hash_N: np.ndarray) -> np.ndarray:
    """Return for each value that is there again the pairs (first position, other position), int64 [E, 2]."""
    _, first_N, back_N = np.unique(hash_N, return_index=True, return_inverse=True)
    first_N = first_N[back_N]
    other_E = np.flatnonzero(first_N != np.arange(len(hash_N)))
    return np.stack([first_N[other_E], other_E], axis=1)


def side_by_side(word_On: np.ndarray, spread_n: np.ndarray, order: int, near: float) -> tuple[np.ndarray, np.ndarray]:
    """Return pairs of columns, int64 [E, 2], near each other in an order and of like signs, and how many signs differ.

    A pair of cosine `near` is left out with probability 3e-5 (SLACK) for each of the two comparisons.
    """
    place_n = np.argsort(word_On[order], kind="stable")
    sorted_On = word_On[:, place_n]
    few_n, most_n = (most_different(words * SIGNS, spread_n[place_n], near) for words in (FIRST_WORDS, ORDERS))
    first = [(order + 1 + i) % ORDERS for i in range(FIRST_WORDS)]  # not those that it is sorted by
    pairs, differ = [np.zeros((0, 2), np.int64)], [np.zeros(0, np.int64)]
    for step in range(1, min(WINDOW, len(place_n) - 1) + 1):
        differ_n = np.sum([np.bitwise_count(sorted_On[o, step:] ^ sorted_On[o, :-step]) for o in first], axis=0)
        low_E = np.flatnonzero(differ_n <= few_n[:-step])
        differ_E = np.bitwise_count(sorted_On[:, low_E + step] ^ sorted_On[:, low_E]).sum(axis=0, dtype=np.int64)
        kept_E = differ_E <= most_n[low_E]
        pairs.append(np.stack([place_n[low_E], place_n[low_E + step]], axis=1)[kept_E])
        differ.append(differ_E[kept_E])
    return np.concatenate(pairs), np.concatenate(differ)


def most_different(signs: int, spread_n: np.ndarray, near: float) -> np.ndarray:
    """Return how many of so many signs of a row and of one of cosine `near` with it may differ, int64 [n].

    About the mean their cosine is 1 - (1 - near) / spread, where both are as far from it.
    """
    cosine_n = np.clip(1 - (1 - near) / np.maximum(spread_n, 1e-6), -1, 1)
    chance_n = np.arccos(cosine_n) / np.pi
    return np.ceil(signs * chance_n + SLACK * np.sqrt(signs * chance_n * (1 - chance_n))).astype(np.int64)


def cosines(vectors: Rows, pair_E2: np.ndarray) -> np.ndarray:
    """Return the cosine of each pair of positions, float32 [E]."""
    cosine_E = np.zeros(len(pair_E2), np.float32)
    step = max(1, BLOCK_BYTES // (8 * vectors.dimension))
    order_E = np.argsort(pair_E2[:, 0], kind="stable")  # rows that are near each other are read together
    for start in range(0, len(pair_E2), step):
        here = order_E[start : start + step]
        position_U, place_e2 = np.unique(pair_E2[here], return_inverse=True)
        row_UF = vectors.take(position_U)
        row_UF /= _norms(row_UF)[:, None]
        low_e, high_e = place_e2.reshape(-1, 2).T
        cosine_E[here] = np.einsum("ef,ef->e", row_UF[low_e], row_UF[high_e])
    return cosine_E


def _norms(row_BF: np.ndarray) -> np.ndarray:
    """Return the norm of each row, 1 of a row of zeros."""
    norm_B = np.sqrt(np.einsum("bf,bf->b", row_BF, row_BF))
    return np.where(norm_B > 0, norm_B, 1)
