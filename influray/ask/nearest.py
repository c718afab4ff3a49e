"""Which of some rows of the pool have the largest cosine with a vector, by one pass over those rows.

Shape suffixes: n rows, b rows of a block, F numbers of a vector, k answers.
"""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np

from influray.store.exact_query import BestRows, one_torch_thread
from influray.store.vectors import SplitVectors

BLOCK_BYTES = 2**21  # of vectors that a thread has in memory: they stay in its cache
LEAST_NORM = 1e-30


class NearestRows:
    """The rows at `positions` of `vectors`. Their norms are taken at the first question and kept."""

    def __init__(self, vectors: SplitVectors, positions: np.ndarray) -> None:
        self._vectors = vectors
        self._order_n = np.argsort(positions, kind="stable")  # rows are read in the order of their files
        self._position_n = np.asarray(positions, np.int64)[self._order_n]
        self._norm_n: np.ndarray | None = None

    def nearest(self, own_F: np.ndarray, k: int, without: int = -1) -> tuple[np.ndarray, np.ndarray]:
        """Return (places int64 [k], cosines float32 [k]): the best first, equal ones by their place in `positions`.

        The row at the position `without` is left out. Where fewer rows are left, k is their number.
        """
        import torch

        count = len(self._position_n)
        dot_n, square_n = np.empty(count, np.float32), np.empty(count, np.float32)
        first = self._norm_n is None
        step = max(1, BLOCK_BYTES // (4 * self._vectors.dimension))
        space = threading.local()

        def multiply(low: int) -> None:
            here = slice(low, min(low + step, count))
            if not hasattr(space, "block_bF"):
                space.block_bF = np.empty((step, self._vectors.dimension), np.float32)
            block_bF = space.block_bF[: here.stop - low]
            self._vectors.read_at(self._position_n[here], block_bF)
            np.einsum("bf,f->b", block_bF, own_F, out=dot_n[here])
            if first:
                np.einsum("bf,bf->b", block_bF, block_bF, out=square_n[here])

        with ThreadPoolExecutor(torch.get_num_threads()) as threads, one_torch_thread():
            list(threads.map(multiply, range(0, count, step)))
        if self._norm_n is None:
            self._norm_n = np.maximum(np.sqrt(square_n), LEAST_NORM)
        cosine_n = np.empty(count, np.float32)
        cosine_n[self._order_n] = dot_n / self._norm_n / max(float(np.linalg.norm(own_F)), LEAST_NORM)
        place_n = np.delete(np.arange(count), self._order_n[self._position_n == without])
        best = BestRows(1, min(k, len(place_n)))
        if len(place_n):
            best.add(0, cosine_n[place_n, None])
        found_k, value_k = (one[0] for one in best.sorted())
        return place_n[found_k.astype(np.int64)], value_k
