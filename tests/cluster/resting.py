"""A featurizer whose shards take time and no processor: what a test stops in the middle."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
from pydantic import Field

from influray.protocols import FeatureBlock, Featurizer, TextExample

D = 8


class Resting(Featurizer):
    """Unit rows that follow from the rows' numbers, after `milliseconds`, or as soon as there is a file `until`."""

    reads, columns = "records", ("norm",)
    dimension = D

    def __init__(self, milliseconds: Annotated[int, Field(ge=0, le=10**6)] = 0, until: str = "") -> None:
        self._seconds = milliseconds / 1000
        self._until = until

    def compute(self, examples: Sequence[TextExample]) -> FeatureBlock:
        deadline = time.monotonic() + self._seconds
        while time.monotonic() < deadline and not (self._until and Path(self._until).exists()):
            time.sleep(0.02)
        row_B = np.array([example.row for example in examples], np.int64)
        feature_BD = np.cos(row_B[:, None] * np.arange(1, D + 1) + 0.5)
        norm_B = np.linalg.norm(feature_BD, axis=1)
        loss_tokens_B = np.array([example.loss_tokens for example in examples], np.int32)
        unit_BD = (feature_BD / norm_B[:, None]).astype(np.float16)
        return FeatureBlock(row_B, unit_BD, norm_B.astype(np.float32), None, None, loss_tokens_B)
