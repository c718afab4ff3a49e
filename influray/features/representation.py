"""Representation features: a pooled last hidden state for every row, from one forward pass (RDS+, arXiv 2503.01807).

The base model as it stands, so there is nothing to warm up and nothing to project: D is the model's hidden size.

Shape suffixes: B batch, S tokens, L tokens of one example, H = D hidden size.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from influray.features.blocks import feature_block, tokens_of
from influray.model.batch import make_batch
from influray.protocols import ConfigError, FeatureBlock, Featurizer, TokenizedExample


class RepresentationFeaturizer(Featurizer):
    """Unit pooled hidden states of whole rows, prompt and answer, after the model's last norm.

    `pooling` is "position_weighted" (weights 1..L over the row's own L tokens; RDS+), "mean", or "last_token" (RDS).
    `norm` of the datastore is that of the pooled state.

    Source: RDS+, arXiv 2503.01807; hamishivi/automated-instruction-selection compute_influence_cosinesim.py. Unlike
    that code, padding has no weight, so a batch may hold more than one row; sums are float64 and not the model's dtype.

    Raises:
        ConfigError: the model's decoder cannot be told from its head.
    """

    reads, makes, columns = "base", "vectors", ("norm", "tokens")

    def __init__(
        self,
        model: nn.Module,
        device: str | torch.device = "cpu",
        pooling: Literal["position_weighted", "mean", "last_token"] = "position_weighted",
    ) -> None:
        self._pooling = pooling
        self._device = torch.device(device)
        whole: Any = model.eval()
        self._decoder: Any = whole.get_decoder() if hasattr(whole, "get_decoder") else whole
        if self._decoder is whole:
            raise ConfigError(
                f"model.base: the hidden states of {type(whole).__name__} cannot be told from its output; "
                "representation needs a causal language model with a decoder of its own"
            )
        with torch.no_grad():
            first = self._decoder(input_ids=torch.zeros(1, 1, dtype=torch.int64, device=self._device), use_cache=False)
        self.dimension: int = first.last_hidden_state.shape[-1]

    @torch.no_grad()
    def compute(self, examples: Sequence[TokenizedExample]) -> FeatureBlock:
        """Return the feature rows of one batch, in its order.

        A row without a trained token, or whose pooled state is not finite or zero, goes to `failures`.
        """
        failures = {e.row: "no trained token" for e in examples if not e.loss_tokens}
        examples = [e for e in examples if e.loss_tokens]
        pooled_BD = np.zeros((len(examples), self.dimension))
        if examples:
            batch = make_batch(examples, self._device)
            output = self._decoder(
                input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, use_cache=False
            )
            states = zip(output.last_hidden_state, examples, strict=True)
            pooled_BD = torch.stack([self._pool(state_SH[: e.tokens]) for state_SH, e in states]).cpu().numpy()
        norm_B = np.linalg.norm(pooled_BD, axis=1)
        usable_B = np.isfinite(norm_B) & (norm_B > 0)
        for b in np.flatnonzero(~usable_B):
            failures[examples[b].row] = "zero feature" if norm_B[b] == 0 else "non-finite feature"
        kept = [examples[b] for b in np.flatnonzero(usable_B)]
        unit_BD, extra = pooled_BD[usable_B] / norm_B[usable_B, None], {"tokens": tokens_of(kept)}
        return feature_block(kept, failures, unit_BD=unit_BD, norm=norm_B[usable_B], extra=extra)

    def _pool(self, hidden_LH: Tensor) -> Tensor:
        """Return one row's pooled state, [H] float64; only its own tokens are looked at."""
        if self._pooling == "last_token":
            return hidden_LH[-1].double()
        L = len(hidden_LH)
        weight_L = torch.ones(L, dtype=torch.float64, device=hidden_LH.device)
        if self._pooling == "position_weighted":
            weight_L = torch.arange(1, L + 1, dtype=torch.float64, device=hidden_LH.device)
        return (hidden_LH.double() * (weight_L / weight_L.sum())[:, None]).sum(0)
