"""Loss features: how hard each row is for a model, from one forward pass; no direction, so no feature vector.

They stand in plain float32 columns: a float16 unit vector of one number would say nothing but its sign.

Shape suffixes: B batch, n trained positions (p of one piece), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influray.features.blocks import feature_block, tokens_of
from influray.model.batch import make_batch
from influray.model.example_losses import by_example
from influray.model.piecewise_head import PiecewiseHead
from influray.protocols import FeatureBlock, Featurizer, TokenizedExample


class LossFeaturizer(Featurizer):
    """Mean loss and mean EL2N over a row's trained tokens, with its numbers of tokens.

    EL2N of a token is |softmax - one-hot label|_2 over the vocabulary. Perplexity is exp(loss) and ranks the same.

    Source: EL2N, arXiv 2107.07075, where it is that of a classifier after a few epochs, averaged over runs; here a
    row's tokens are averaged, under the base model.
    """

    reads, makes, columns = "base", "facts", ("loss", "el2n", "tokens")
    dimension = 0

    def __init__(self, model: nn.Module, device: str | torch.device = "cpu") -> None:
        self._device = torch.device(device)
        self._head = PiecewiseHead(model.eval())

    @torch.no_grad()
    def compute(self, examples: Sequence[TokenizedExample]) -> FeatureBlock:
        """Return the losses of one batch, in its order. A row whose loss is not finite goes to `failures`."""
        failures = {e.row: "no trained token" for e in examples if not e.loss_tokens}
        examples = [e for e in examples if e.loss_tokens]
        loss_B, el2n_B = np.zeros(0), np.zeros(0)
        if examples:
            batch = make_batch(examples, self._device)
            pieces = [token_scores(logits_pV, label_p) for logits_pV, label_p in self._head.pieces(batch)]
            loss_B, el2n_B = (
                by_example(torch.cat(score_n).double(), batch).sum(1).cpu().numpy() / batch.loss_tokens_B.cpu().numpy()
                for score_n in zip(*pieces, strict=True)
            )
        usable_B = np.isfinite(loss_B) & np.isfinite(el2n_B)
        failures |= {examples[b].row: "non-finite loss" for b in np.flatnonzero(~usable_B)}
        kept = [examples[b] for b in np.flatnonzero(usable_B)]
        el2n = el2n_B[usable_B].astype(np.float32)
        extra = {"el2n": el2n, "tokens": tokens_of(kept)}
        return feature_block(kept, failures, loss=loss_B[usable_B], extra=extra)


class CheckpointLossFeaturizer(LossFeaturizer):
    """The same under the base with each warmup adapter in turn: what EL2N's paper has, some epochs into a training,
    and with `warmup.train_on: targets` the two models of CoLoR-Filter (scorers/loss_drop.py).
    """

    reads = "adapters"

    def __init__(self, model: Any, device: str | torch.device = "cpu") -> None:
        super().__init__(model.get_base_model(), device)  # whose layers hold the adapter


def token_scores(logits_pV: Tensor, label_p: Tensor) -> tuple[Tensor, Tensor]:
    """Return (loss, EL2N) of each position, [p] each, in the dtype of the logits."""
    loss_p = F.cross_entropy(logits_pV, label_p, reduction="none")
    # With the label's own share struck out, q = p but q_y = 0, so that 1 - p_y = sum q and
    # sum p^2 - 2 p_y + 1 = (sum q)^2 + sum q^2. The left side cancels: in float32, vocabulary 32000, its root is off by
    # 2 % at p_y = 1 - 1e-3 and can be 0 at 1 - 1e-4, where the right one is within 1e-5.
    other_pV = logits_pV.softmax(-1).scatter(-1, label_p[:, None], 0.0)
    return loss_p, (other_pV.sum(-1).square() + other_pV.square().sum(-1)).sqrt()
