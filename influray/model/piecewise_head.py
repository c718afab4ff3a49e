"""The output head of a causal LM applied to trained positions a piece at a time, so that [n, V] never exists.

Shape suffixes: B batch, S tokens, n trained positions (p of one piece), H hidden, V vocabulary.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from influray.model.batch import Batch, at_trained, make_batch
from influray.model.checkpointing import calling
from influray.protocols import TokenizedExample

log = logging.getLogger(__name__)

# Float32 logits of one piece of the head. On one CPU thread, vocabulary 4096, 4 MB took 0.41 s where 1 MB took 0.51,
# 16 MB 0.49 and 64 MB 0.62: it still fits a core's cache.
_PIECE_BYTES = {"cpu": 2**22, "cuda": 2**28}
# The head's weights are read once a piece, and with a large vocabulary they fit no cache: 256 rows at 49,152 x 576 took
# 1.19 s in pieces of 21 rows, .54 s in pieces of 128 and .51 s in one; at 151,936 x 896 4.7, 2.2 and 2.0 s.
_FEWEST_ROWS = 128


class PiecewiseHead:
    """The decoder of a model and its head apart from each other.

    The decoder runs once; the model's own forward, with whatever it does to logits (scaling, soft caps), is applied to
    pieces of its states. `problem` says why that cannot be done, and then all logits have to be made: a probe at
    construction finds other logits than those of the model as it stands, or a layer in `tracked` is not part of the
    decoder. It is empty where it can. `masked` tells attention which tokens are padding.
    """

    def __init__(self, model: Any, *, masked: bool = True, tracked: Iterable[nn.Module] = ()) -> None:
        self._model, self._masked = model, masked
        decoder = model.get_decoder() if hasattr(model, "get_decoder") else model
        inside = set(decoder.modules())
        if decoder is model or model.get_output_embeddings() is None:
            self.problem = "its decoder cannot be told from its head"
        elif not all(module in inside for module in tracked):
            self.problem = "a tracked weight lies outside its decoder"
        else:
            self.problem = self._probe()
        if self.problem:
            log.warning(
                "%s: %s, so all logits are made, which takes [tokens, vocabulary] memory",
                type(model).__name__,
                self.problem,
            )

    def decode(self, batch: Batch) -> Any:
        """Return the decoder's output."""
        return self._model.get_decoder()(**_inputs(batch, self._masked))

    def whole_logits(self, batch: Batch) -> Tensor:
        """Return all logits of the model as it stands, [B, S, V]."""
        return self._model(**_inputs(batch, self._masked)).logits

    def logits(self, output_type: type, hidden_pH: Tensor) -> Tensor:
        """Return the logits of states of the decoder, whose output is of `output_type`, [p, V]."""
        # The model's own forward, with a decoder that answers with the states that we already have.
        answer = output_type(last_hidden_state=hidden_pH[None])
        with calling(self._model.get_decoder(), lambda *_, **__: answer):
            return self._model(input_ids=None, use_cache=False).logits[0]

    def rows_of_a_piece(self, device: torch.device) -> int:
        """Return how many positions a piece should have."""
        vocabulary = self._model.get_output_embeddings().weight.shape[0]
        return max(_FEWEST_ROWS, _PIECE_BYTES.get(device.type, _PIECE_BYTES["cuda"]) // (4 * vocabulary))

    @torch.no_grad()
    def pieces(self, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield (logits [p, V] in at least float32, labels [p]), positions ascending over all pieces."""
        if self.problem:
            logits_nV = at_least_float32(at_trained(self.whole_logits(batch), batch))
            yield logits_nV, batch.label_n.to(logits_nV.device)
            return
        output = self.decode(batch)
        hidden_nH = at_trained(output.last_hidden_state, batch)
        step = self.rows_of_a_piece(hidden_nH.device)
        for start in range(0, len(hidden_nH), step):
            logits_pV = at_least_float32(self.logits(type(output), hidden_nH[start : start + step]))
            yield logits_pV, batch.label_n[start : start + step].to(logits_pV.device)

    @torch.no_grad()
    def _probe(self) -> str:
        batch = _probe_batch(self._model)
        expected = at_trained(self.whole_logits(batch), batch)
        output = self.decode(batch)
        found = self.logits(type(output), at_trained(output.last_hidden_state, batch)).to(expected.device)
        if found.shape != expected.shape:
            return f"its head gives {tuple(found.shape)} for trained positions, not {tuple(expected.shape)}"
        error = off_by(found, expected)
        return f"logits of trained positions alone are off by {error:.3g}" if error else ""


@torch.no_grad()
def padding_shows(model: Any) -> bool:
    """Return whether padding on the right changes the logits of real tokens unless it is masked.

    By more than rounding: the products of experts are as wide as the tokens that are routed to them, padding included.
    """
    batch = _probe_batch(model)
    other = torch.where(batch.attention_mask_BS.bool(), batch.input_ids_BS, batch.input_ids_BS[0, 3])
    first, second = (
        at_trained(model(**_inputs(replace(batch, input_ids_BS=ids), masked=False)).logits, batch).nan_to_num()
        for ids in (batch.input_ids_BS, other)
    )
    return off_by(first, second) > 0


def off_by(found: Tensor, expected: Tensor) -> float:
    """Return by how much logits differ, 0 where it is no more than rounding."""
    allowed = max(1e-5, 8 * torch.finfo(expected.dtype).eps) * float(expected.double().nan_to_num().abs().max())
    error = float((found.double() - expected.double()).nan_to_num().abs().max())
    return error if error > allowed else 0.0


def at_least_float32(value: Tensor) -> Tensor:
    """Return the value in float32, or in float64 if it is."""
    return value.to(torch.promote_types(value.dtype, torch.float32))


def _inputs(batch: Batch, masked: bool) -> dict[str, Any]:
    if batch.packing is not None:
        # No mask: it would be read as one over the line. Attention goes by stack (see stacked_attention).
        positions_BS = batch.packing.position_ids_BS
        return {"input_ids": batch.input_ids_BS, "position_ids": positions_BS, "use_cache": False}
    # Positions are left to the model: with padding on the right they are 0, 1, 2 ... in every family. For the same
    # reason a causal model needs no mask, and without one attention has faster kernels: they skip the future.
    mask_BS = batch.attention_mask_BS if masked else None
    return {"input_ids": batch.input_ids_BS, "attention_mask": mask_BS, "use_cache": False}


def _probe_batch(model: Any) -> Batch:
    embedding = model.get_input_embeddings().weight
    tokens = np.arange(1, 13, dtype=np.int32) % embedding.shape[0]
    mask = np.arange(len(tokens)) > 0
    examples = [TokenizedExample(0, tokens, mask), TokenizedExample(1, tokens[:5][::-1].copy(), mask[:5])]
    return make_batch(examples, embedding.device)
