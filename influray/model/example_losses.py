"""Losses and logits of single examples from one forward pass over a padded batch.

Shape suffixes: B batch, S tokens, n trained positions of the batch (p of one piece), H hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from influray.model.example_gradients import Batch, make_batch
from influray.protocols import TokenizedExample

log = logging.getLogger(__name__)

_PIECE_BYTES = {"cpu": 2**22, "cuda": 2**28}  # of float32 logits, as for gradients


def trained_logits(model: Any, batch: Batch) -> Tensor:
    """Return the logits at the positions that predict a trained token, [n, V], in at least float32."""
    logits_BSV = model(input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, use_cache=False).logits
    # Only these rows are raised to float32: of a padded batch of long prompts they are a small part.
    logits_nV = logits_BSV.reshape(-1, logits_BSV.shape[-1]).index_select(0, batch.position_n.to(logits_BSV.device))
    return logits_nV if logits_nV.dtype == torch.float64 else logits_nV.float()


def mean_losses(logits_nV: Tensor, batch: Batch) -> Tensor:
    """Return the mean over its trained tokens of each example's loss, [B], differentiable."""
    loss_n = F.cross_entropy(logits_nV, batch.label_n.to(logits_nV.device), reduction="none")
    return by_example(loss_n, batch).sum(1) / batch.loss_tokens_B.to(loss_n)


def by_example(value_n: Tensor, batch: Batch, fill: float = 0.0) -> Tensor:
    """Return values of trained positions at their places, [B, S], `fill` elsewhere."""
    # Every position occurs once, so nothing is accumulated and the order of threads cannot show in the sums.
    flat = torch.full((batch.input_ids_BS.numel(),), fill, dtype=value_n.dtype, device=value_n.device)
    return flat.index_copy(0, batch.position_n.to(value_n.device), value_n).view(batch.input_ids_BS.shape)


class PiecewiseHead:
    """The logits of a causal LM at trained positions, a piece at a time, so that [n, V] never exists.

    The decoder runs once; the model's own forward, with whatever it does to logits (scaling, soft caps), is applied to
    pieces of its states. A probe at construction compares that with the model as it stands; where they differ, all
    logits are made.
    """

    def __init__(self, model: Any) -> None:
        self._model = model.eval()
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        self._decoder: Any = None if decoder is model or model.get_output_embeddings() is None else decoder
        if self._decoder is not None and not self._agrees():
            self._decoder = None
        if self._decoder is None:
            log.warning("%s: its head cannot be run by itself, so all logits are made", type(model).__name__)

    @torch.no_grad()
    def pieces(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits [p, V] in at least float32, labels [p]), positions ascending over all pieces."""
        if self._decoder is None:
            logits_nV = trained_logits(self._model, batch)
            yield logits_nV, batch.label_n.to(logits_nV.device)
            return
        output = self._decoder(input_ids=batch.input_ids_BS, attention_mask=batch.attention_mask_BS, use_cache=False)
        hidden_BSH = output.last_hidden_state
        place_n = batch.position_n.to(hidden_BSH.device)
        hidden_nH = hidden_BSH.reshape(-1, hidden_BSH.shape[-1]).index_select(0, place_n)
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        step = max(16, _PIECE_BYTES.get(hidden_nH.device.type, _PIECE_BYTES["cuda"]) // (4 * vocabulary))
        for start in range(0, len(hidden_nH), step):
            states = type(output)(last_hidden_state=hidden_nH[None, start : start + step])
            with _answering(self._decoder, states):
                logits_pV = self._model(input_ids=None, use_cache=False).logits[0]
            label_p = batch.label_n[start : start + step].to(logits_pV.device)
            yield logits_pV.to(torch.promote_types(logits_pV.dtype, torch.float32)), label_p

    def _agrees(self) -> bool:
        embedding = self._model.get_input_embeddings().weight
        tokens_S = np.arange(1, 13, dtype=np.int32) % embedding.shape[0]
        batch = make_batch([TokenizedExample(0, tokens_S, np.arange(12) > 0)], embedding.device)
        found_nV = torch.cat([logits_pV for logits_pV, _ in self.pieces(batch)]).double().nan_to_num()
        with torch.no_grad():
            expected_nV = trained_logits(self._model, batch).double().nan_to_num().to(found_nV.device)
        allowed = max(1e-5, 8 * torch.finfo(self._model.dtype).eps) * float(expected_nV.abs().max())
        return found_nV.shape == expected_nV.shape and float((found_nV - expected_nV).abs().max()) <= allowed


@contextmanager
def _answering(module: Any, answer: Any) -> Iterator[None]:
    """Let a module return `answer` without running."""
    before = module.__dict__.get("forward")  # accelerate puts one there
    module.forward = lambda *_, **__: answer
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
