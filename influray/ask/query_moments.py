"""Mean and standard deviation over the pool of the influence on any query, without a pass over the pool.

The mean is q . mu. The variance is q' C q with the F x F covariance of the vectors, summed up in one pass, where F is
small enough; else that of a fixed sample of rows.

Shape suffixes: N pool rows, S rows of the sample, Q queries, F numbers of a vector.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

WIDEST = 2048  # F: the pass costs N F^2 additions, and the matrix 8 F^2 bytes
SAMPLE = 4096  # rows: the standard deviation of a normal column is then known to 1.1%


@dataclass(frozen=True)
class QueryMoments:
    """`covariance_FF` about `shift_F`, or None where `sample_SF` (about the mean) stands for it."""

    mean_F: np.ndarray  # float64
    covariance_FF: np.ndarray | None  # float32, of ddof 0
    sample_SF: np.ndarray | None  # float32

    def of(self, query_QF: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return (mean, std (ddof 0)), each float64 [Q]."""
        query_QF = np.asarray(query_QF, np.float64)
        mean_Q = query_QF @ self.mean_F
        if self.covariance_FF is not None:
            variance_Q = ((query_QF @ self.covariance_FF.astype(np.float64)) * query_QF).sum(axis=1)
            return mean_Q, np.sqrt(np.maximum(variance_Q, 0.0))
        assert self.sample_SF is not None
        square_SQ = (self.sample_SF.astype(np.float64) @ query_QF.T) ** 2
        return mean_Q, np.sqrt(square_SQ.mean(axis=0))

    def arrays(self) -> dict[str, np.ndarray]:
        """Return what `moments_from` takes."""
        kept = {"mean": self.mean_F, "covariance": self.covariance_FF, "sample": self.sample_SF}
        return {name: array for name, array in kept.items() if array is not None}


def moments_from(arrays: Mapping[str, np.ndarray]) -> QueryMoments:
    """Return the moments that `QueryMoments.arrays` gave."""
    return QueryMoments(arrays["mean"], arrays.get("covariance"), arrays.get("sample"))


class MomentSums:
    """What a pass over the vectors adds up; blocks in ascending order, so that the bits repeat.

    `shift_F` is a rough mean: sums about it do not cancel. `exact` asks for the covariance.
    """

    def __init__(self, shift_F: np.ndarray, exact: bool) -> None:
        F = len(shift_F)
        self._shift_F = shift_F.astype(np.float32)
        self._sum_F = np.zeros(F)
        self._product_FF = np.zeros((F, F)) if exact else None
        self._count = 0

    def add(self, block_BF: np.ndarray) -> None:
        """Take in a block of vectors."""
        centred_BF = block_BF - self._shift_F
        self._sum_F += centred_BF.sum(axis=0, dtype=np.float64)
        self._count += len(block_BF)
        if self._product_FF is not None:
            self._product_FF += centred_BF.T @ centred_BF

    def finish(self, sample_SF: np.ndarray) -> QueryMoments:
        """Return the moments of all that was added; `sample_SF` are rows drawn from it."""
        offset_F = self._sum_F / self._count
        mean_F = self._shift_F + offset_F
        if self._product_FF is None:
            return QueryMoments(mean_F, None, (sample_SF - mean_F).astype(np.float32))
        covariance_FF = self._product_FF / self._count - np.outer(offset_F, offset_F)
        return QueryMoments(mean_F, covariance_FF.astype(np.float32), None)
