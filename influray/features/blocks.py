"""The rows of a batch that a featurizer could use, as the block that the store takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from influray.protocols import FeatureBlock, SparseRows, TextExample, TokenizedExample


def feature_block(
    kept: Sequence[TokenizedExample] | Sequence[TextExample],
    failures: Mapping[int, str],
    *,
    unit_BD: np.ndarray | None = None,
    counts: SparseRows | None = None,
    norm: np.ndarray | None = None,
    grad_norm: np.ndarray | None = None,
    loss: np.ndarray | None = None,
    extra: Mapping[str, np.ndarray] | None = None,
) -> FeatureBlock:
    """Return the rows of `kept`, in its order, with the columns given in the types of the store."""
    norm, grad_norm, loss = (
        None if column is None else column.astype(np.float32) for column in (norm, grad_norm, loss)
    )
    return FeatureBlock(
        row_B=np.array([e.row for e in kept], np.int64),
        feature_BD=None if unit_BD is None else unit_BD.astype(np.float16, copy=False),
        norm_B=norm,
        grad_norm_B=grad_norm,
        loss_B=loss,
        loss_tokens_B=np.array([e.loss_tokens for e in kept], np.int32),
        failures=failures,
        extra=extra or {},
        counts=counts,
    )


def tokens_of(kept: Sequence[TokenizedExample] | Sequence[TextExample]) -> np.ndarray:
    """Return the length of each row, [B] int32."""
    return np.array([e.tokens for e in kept], np.int32)
