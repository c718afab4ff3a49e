"""Tokenised examples as tensors: padded on the right, with the places that predict a trained token.

Shape suffixes: B batch, S tokens, n trained positions, x whatever a position has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from influray.protocols import TokenizedExample


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right; `position_n`, ascending, are the places in B*S that predict a trained token."""

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    position_n: Tensor
    label_n: Tensor
    loss_tokens_B: Tensor


def make_batch(examples: Sequence[TokenizedExample], device: str | torch.device) -> Batch:
    """Return the examples as one right-padded batch. Each must have a trained token."""
    B, S = len(examples), max(example.tokens for example in examples)
    # Padding repeats the row's own first token, so that it brings nothing into a row that was not in it: the pad
    # token's embedding could be poisoned, and NaN times a masked weight of zero is NaN.
    ids_BS = np.stack([np.pad(e.input_ids_S, (0, S - e.tokens), constant_values=e.input_ids_S[0]) for e in examples])
    trained_BS = np.zeros((B, S), dtype=bool)
    attended_BS = np.zeros((B, S), dtype=np.int64)
    for b, example in enumerate(examples):
        assert example.loss_tokens, f"row {example.row} has no trained token"
        assert not example.loss_mask_S[0], f"row {example.row}: nothing predicts its first token"
        trained_BS[b, : example.tokens] = example.loss_mask_S
        attended_BS[b, : example.tokens] = 1
    label_at = np.flatnonzero(trained_BS)
    return Batch(
        input_ids_BS=torch.from_numpy(ids_BS.astype(np.int64)).to(device),
        attention_mask_BS=torch.from_numpy(attended_BS).to(device),
        position_n=torch.from_numpy(label_at - 1).to(device),  # token s is predicted at s - 1
        label_n=torch.from_numpy(ids_BS.reshape(-1)[label_at].astype(np.int64)).to(device),
        loss_tokens_B=torch.from_numpy(trained_BS.sum(1)).to(device),
    )


def at_trained(value_BSx: Tensor, batch: Batch) -> Tensor:
    """Return the values at the positions that predict a trained token, [n, x]."""
    return value_BSx.reshape(-1, value_BSx.shape[-1]).index_select(0, batch.position_n.to(value_BSx.device))
