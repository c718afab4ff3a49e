"""BM25: how well each pool row answers each target as a query, by the n-grams they share.

Shape suffixes: B pool rows of a block, T targets, n entries, U terms of the targets.
"""

from __future__ import annotations

from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import Arrays, FeatureRows, Scorer, SparseRows, Stores
from influray.scorers.counts import counts_of, row_totals, weighted_sums
from influray.scorers.options import require


class BM25(Scorer):
    """A[i, j] = sum over terms u of target j: q_ju * idf_u * c_iu (k1 + 1) / (c_iu + k1 (1 - b + b len_i / mean len)).

    A term is a bucket of the store: n-grams up to its `n`, and those that share a bucket are one. `c` are counts in
    the pool row, `q` in the target (a term counts as often as the target has it), `len` the number of n-grams of a
    row, and idf_u = log(1 + (N - N_u + 1/2) / (N_u + 1/2)) for the N_u of N pool rows that have the term.

    Source: Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond, 2009, section 3. Unlike
    there the idf has the 1 + of Lucene, without which a term of more than half of the rows counts against a row, and
    the factor k1 + 1, which changes no order.
    """

    passes = 1

    def __init__(
        self, stores: Stores, k1: Annotated[float, Field(ge=0)] = 1.5, b: Annotated[float, Field(ge=0, le=1)] = 0.75
    ) -> None:
        require("bm25", stores, makes="counts")
        self._k1, self._b = k1, b

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return the pool's rows, n-grams, and rows that have each term of the targets."""
        rows, term_U = counts_of(pool), np.unique(counts_of(target).bucket)
        place_n, known_n = _places(rows, term_U)
        return {
            "rows": np.array([len(pool)], np.float64),
            "length": np.array([rows.count.sum(dtype=np.int64)], np.float64),
            "having": np.bincount(place_n[known_n], minlength=len(term_U)).astype(np.float64),
        }

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return the targets' terms, their idf, and the mean length of a pool row."""
        rows, having_U = sums["rows"], sums["having"]
        return {
            "term": np.unique(counts_of(target).bucket),
            "idf": np.log1p((rows - having_U + 0.5) / (having_U + 0.5)),
            "mean_length": sums["length"] / rows,
        }

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32; sums in float64."""
        rows, term_U = counts_of(pool), state["term"]
        query_UT = self._queries(counts_of(target), term_U) * state["idf"][:, None]
        length_B = row_totals(rows) / state["mean_length"]
        saturation_n = np.repeat(self._k1 * (1 - self._b + self._b * length_B), np.diff(rows.offset))
        weight_n = rows.count * (self._k1 + 1) / (rows.count + saturation_n)
        place_n, known_n = _places(rows, term_U)
        offset = np.concatenate([[0], np.cumsum(known_n)])[rows.offset]
        return weighted_sums(offset, place_n[known_n], weight_n[known_n], query_UT).astype(np.float32)

    def _queries(self, rows: SparseRows, term_U: np.ndarray) -> np.ndarray:
        query_UT = np.zeros((len(term_U), len(rows.offset) - 1))
        place_n, _ = _places(rows, term_U)
        query_UT[place_n, np.repeat(np.arange(query_UT.shape[1]), np.diff(rows.offset))] = rows.count
        return query_UT


def _places(rows: SparseRows, term_U: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return (each entry's place in the ascending terms, whether it is one of them), [n] each."""
    place_n = np.minimum(np.searchsorted(term_U, rows.bucket), len(term_U) - 1)
    return place_n, term_U[place_n] == rows.bucket
