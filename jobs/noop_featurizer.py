"""Featurizers for benchmark_runtime.py, named in its configs as plug-ins: what a run costs beside the gradients.

Shape suffixes: B rows, D feature.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import FeatureBlock, Featurizer, TextExample

D = 16


class Noop(Featurizer):
    """A unit row that follows from the row's number, and no work."""

    reads, columns = "records", ("norm",)
    dimension = D

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        row_B = np.array([example.row for example in examples], np.int64)
        feature_BD = np.cos(row_B[:, None] * np.arange(1, D + 1) % 97 + 0.5)
        norm_B = np.linalg.norm(feature_BD, axis=1)
        return FeatureBlock(
            row_B=row_B,
            feature_BD=(feature_BD / norm_B[:, None]).astype(np.float16),
            norm_B=norm_B.astype(np.float32),
            grad_norm_B=None,
            loss_B=None,
            loss_tokens_B=np.array([example.loss_tokens for example in examples], np.int32),
        )


class Spin(Noop):
    """The same rows after a fixed number of sums in one thread: work whose CPU time does not depend on who does it."""

    def __init__(self, rounds: Annotated[int, Field(ge=1)] = 1000) -> None:
        self._rounds = rounds

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        spin(self._rounds)
        return super().compute(examples)


def spin(rounds: int) -> float:
    """Add up 10,000 numbers `rounds` times, 5 to 10 us each, and return the CPU seconds it took."""
    began, numbers = time.process_time(), np.arange(10_000, dtype=np.float64)
    for _ in range(rounds):
        numbers.sum()
    return time.process_time() - began
