"""A featurizer whose shards take time and no processor: what a test stops in the middle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from influray.features.options import Option, whole_number
from influray.protocols import FeatureBlock, TextExample

D = 8


class Resting:
    """Unit rows that follow from the rows' numbers, after `milliseconds`."""

    reads = "records"
    dimension = D
    OPTIONS: ClassVar = {"milliseconds": Option(0, whole_number(0, 10**6))}

    def __init__(self, milliseconds: int) -> None:
        self._seconds = milliseconds / 1000

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        time.sleep(self._seconds)
        row_B = np.array([example.row for example in examples], np.int64)
        feature_BD = np.cos(row_B[:, None] * np.arange(1, D + 1) + 0.5)
        norm_B = np.linalg.norm(feature_BD, axis=1)
        loss_tokens_B = np.array([example.loss_tokens for example in examples], np.int32)
        unit_BD = (feature_BD / norm_B[:, None]).astype(np.float16)
        return FeatureBlock(row_B, unit_BD, norm_B.astype(np.float32), None, None, loss_tokens_B)
