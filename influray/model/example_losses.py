"""Losses and logits of single examples from one forward pass over a padded batch.

Shape suffixes: B batch, S tokens, n trained positions of the batch, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from influray.model.batch import Batch, at_trained
from influray.model.piecewise_head import at_least_float32


def trained_logits(model: Any, batch: Batch) -> Tensor:
    """Return the logits at the positions that predict a trained token, [n, V], in at least float32."""
    logits_BSV = model(input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, use_cache=False).logits
    # Only these rows are raised to float32: of a padded batch of long prompts they are a small part.
    return at_least_float32(at_trained(logits_BSV, batch))


def mean_losses(logits_nV: Tensor, batch: Batch) -> Tensor:
    """Return the mean over its trained tokens of each example's loss, [B], differentiable."""
    loss_n = F.cross_entropy(logits_nV, batch.label_n.to(logits_nV.device), reduction="none")
    return by_example(loss_n, batch).sum(1) / batch.loss_tokens_B.to(loss_n)


def by_example(value_n: Tensor, batch: Batch, fill: float = 0.0) -> Tensor:
    """Return values of trained positions at their places, [B, S], `fill` elsewhere."""
    # Every position occurs once, so nothing is accumulated and the order of threads cannot show in the sums.
    flat = torch.full((batch.input_ids_BS.numel(),), fill, dtype=value_n.dtype, device=value_n.device)
    return flat.index_copy(0, batch.position_n.to(value_n.device), value_n).view(batch.input_ids_BS.shape)
