"""Gradients of single examples for a whole batch, in one forward and one backward.

For a linear layer y = W x the gradient of example b is the sum over its tokens of dL/dy_bs x_bs^T: forward hooks
keep x, hooks on y receive dL/dy, and the product per example is handed on as soon as the backward reaches the layer,
so [B, P] never exists. The loss is the sum over examples of each one's own mean, so rows are exact. Only positions
that predict a trained token reach the output head, in pieces. A packed batch runs through the layers as one line;
attention and the products per example take it stack by stack.

Shape suffixes: B batch, S tokens ([1, T] for [B, S] where a batch is packed), b and s those of one stack, P parameters
(p of one weight), H hidden, V vocabulary, n trained positions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import cached_property, partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from influray.model.batch import Batch, at_trained
from influray.model.checkpointing import calling, checkpointed_layers, run_checkpointed
from influray.model.frozen_norm import frozen_norms
from influray.model.merged_lora import MergedLora, merge_lora
from influray.model.packed_linear import pack_linear
from influray.model.piecewise_head import PiecewiseHead, at_least_float32, padding_shows
from influray.model.stacked_attention import attending_by_stack, stacking_problem
from influray.model.tracked_weights import TrackedWeight, lora_weights
from influray.protocols import ConfigError

# float16 activations lose gradients under 6e-8. A power of two is undone exactly.
_LOSS_SCALE = {torch.float16: 2.0**12}


BlockConsumer = Callable[[TrackedWeight, Tensor], None]  # (weight, gradient block [B, p])
# (weight, which of the B examples, their dL/dy [b, s, out], their x [b, s, in]): once for every stack of a batch
FactorConsumer = Callable[[TrackedWeight, slice, Tensor, Tensor], None]


class ExampleGradients:
    """Computes per-example gradients of linear layers of a causal LM; freezes all its weights.

    `head` says how logits are made: "pieces" of trained positions, or where PiecewiseHead has a problem with that,
    "whole": the model runs as it stands and makes all B x S logits. `masks_padding` is False where a probe shows that
    real tokens do not see padding anyway.
    `checkpointing` keeps only the input of each decoder layer and runs its forward again in the backward; without
    `merging` LoRA layers stay apart from their bases, as `run` with `consume_factors` needs them.
    Raises ConfigError for `checkpointing` of a model whose layers transformers cannot checkpoint.
    """

    def __init__(
        self,
        model: nn.Module,
        weights: Sequence[TrackedWeight] | None = None,
        *,
        checkpointing: bool = False,
        merging: bool = True,
    ) -> None:
        self.weights = tuple(weights) if weights is not None else lora_weights(model)
        self.parameters = sum(weight.size for weight in self.weights)
        self.model: Any = model.get_base_model() if hasattr(model, "get_base_model") else model  # pyright: ignore
        self.model.requires_grad_(False)
        self.model.eval()
        self._checkpointed = self._reached(checkpointed_layers(self.model)) if checkpointing else []
        self._scale = _LOSS_SCALE.get(self.model.dtype, 1.0)
        self._batch: Batch | None = None  # the one under way
        self._calls: dict[str, int] = {}  # forward calls whose gradient has not come yet
        self._partial: dict[str, Tensor] = {}  # sums of layers that are called more than once
        self._done: set[str] = set()
        self._consume: BlockConsumer = _ignore
        self._consume_factors: FactorConsumer | None = None
        self._factors: dict[str, list[tuple[Tensor, Tensor]]] = {}  # of layers that are called more than once
        self.masks_padding = padding_shows(self.model)
        tracked = [weight.module for weight in self.weights]
        self._head = PiecewiseHead(self.model, masked=self.masks_padding, tracked=tracked)
        self.head: Literal["pieces", "whole"] = "whole" if self._head.problem else "pieces"
        self.merged = merge_lora(self.model, self.weights, self._deliver, self._products) if merging else []
        self._packed = pack_linear(self.model, (part for merged in self.merged for part in merged.layer.modules()))
        self._norms = frozen_norms(self.model)
        by_itself = {weight.name for layer in self.merged for weight in (layer.down, layer.up)}
        self._handles = [
            weight.module.register_forward_hook(partial(self._on_forward, weight))
            for weight in self.weights
            if weight.name not in by_itself
        ]

    def _reached(self, layers: list[nn.Module]) -> list[nn.Module]:
        """Return the layers that the backward comes to: those from the first that holds a tracked weight."""
        tracked = {weight.module for weight in self.weights}
        lowest = next((i for i, layer in enumerate(layers) if tracked.intersection(layer.modules())), 0)
        return layers[lowest:]

    def close(self) -> None:
        """Remove the hooks from the model and drop the merged and packed weights."""
        for handle in self._handles:
            handle.remove()
        self.merged, self._packed, self._norms = [], [], []

    @cached_property
    def packing_problem(self) -> str:
        """Why batches of this model cannot be packed, found by a probe; empty where they can."""
        if self.masks_padding:
            return "its real tokens see padding that is not masked"
        return stacking_problem(self.model, self._head.whole_logits)

    def run(self, batch: Batch, consume: BlockConsumer, consume_factors: FactorConsumer | None = None) -> Tensor:
        """Hand the gradients of a batch to `consume`, weight by weight, and return the mean losses [B] float64.

        `consume(weight, block)` is called once for every tracked weight, in the order of the backward, with a block
        [B, p] of float32 (float64 under a float64 model) that is dropped after the call. A layer that the loss does
        not depend on comes last with zeros. A row that is not finite leaves the others as they are.

        With `consume_factors` no gradient is formed: it gets the two tensors whose products over tokens add up to it
        (those of several calls of a layer one after the other), stack by stack, and `consume` only the zeros.

        A packed batch needs a model without a `packing_problem`.

        Raises:
            ConfigError: a tracked layer does not see its input as [B, S, features].
        """
        assert consume_factors is None or not self.merged, "merged layers have no factors to hand on"
        assert batch.packing is None or not self.packing_problem, self.packing_problem
        self._batch, self._consume = batch, consume
        self._calls, self._partial, self._done = {}, {}, set()
        self._consume_factors, self._factors = consume_factors, {}
        try:
            with torch.enable_grad(), ExitStack() as replaced:
                if batch.packing is not None:
                    replaced.enter_context(attending_by_stack(self.model, batch.packing.sizes))
                for layer in self.merged:
                    replaced.enter_context(calling(layer.layer, partial(self._run_merged, layer)))
                for part in (*self._packed, *self._norms):
                    replaced.enter_context(calling(part.layer, part.forward))
                for block in self._checkpointed:
                    replaced.enter_context(calling(block, partial(run_checkpointed, block.forward)))
                backward = self._backward_in_pieces if self.head == "pieces" else self._backward_whole
                token_loss_n = backward(batch)
            self._flush(len(batch.loss_tokens_B))
        finally:
            self._batch, self._consume, self._consume_factors = None, _ignore, None
            self._partial, self._factors = {}, {}
        return _sum_by_example(token_loss_n, batch) / batch.loss_tokens_B.double()

    def _backward_in_pieces(self, batch: Batch) -> Tensor:
        output = self._decode(batch)
        hidden_BSH = output.last_hidden_state
        grad_BSH, loss_n = self._head_gradient(type(output), hidden_BSH.detach(), batch)
        hidden_BSH.backward(grad_BSH)
        return loss_n

    def _head_gradient(self, output_type: type, hidden_BSH: Tensor, batch: Batch) -> tuple[Tensor, Tensor]:
        """Return the gradient of the batch's loss in the decoder's output and the loss of each trained token."""
        H = hidden_BSH.shape[-1]
        hidden_nH = at_trained(hidden_BSH, batch)
        label_n, weight_n = batch.label_n, self._token_weights(batch)
        grad_nH, losses = torch.empty_like(hidden_nH), []
        step = self._head.rows_of_a_piece(hidden_BSH.device)
        for start in range(0, len(hidden_nH), step):
            part = slice(start, start + step)
            piece = hidden_nH[part].requires_grad_()
            logits = at_least_float32(self._head.logits(output_type, piece))
            loss = F.cross_entropy(logits, label_n[part].to(logits.device), reduction="none")
            (grad_nH[part],) = torch.autograd.grad(loss, piece, weight_n[part].to(loss))
            losses.append(loss.detach())
        grad_BSH = torch.zeros_like(hidden_BSH)
        grad_BSH.view(-1, H).index_copy_(0, batch.position_n.to(grad_nH.device), grad_nH)  # each position once
        return grad_BSH, torch.cat(losses)

    def _backward_whole(self, batch: Batch) -> Tensor:
        logits_nV = at_least_float32(at_trained(self._head.whole_logits(batch), batch))
        loss_n = F.cross_entropy(logits_nV, batch.label_n.to(logits_nV.device), reduction="none")
        loss_n.backward(self._token_weights(batch).to(loss_n))
        return loss_n.detach()

    def _decode(self, batch: Batch) -> Any:
        return self._head.decode(batch)

    def _token_weights(self, batch: Batch) -> Tensor:
        mean_B = self._scale / batch.loss_tokens_B.double()
        return mean_B[batch.example_n()]

    def _on_forward(self, weight: TrackedWeight, module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        if self._batch is None or not torch.is_grad_enabled():
            return
        x_BSi = inputs[0]
        self._require_examples(weight, x_BSi)
        if not output.requires_grad:
            output.requires_grad_()  # the backward ends here: nothing below this layer is tracked
        self._calls[weight.name] = self._calls.get(weight.name, 0) + 1
        output.register_hook(partial(self._on_gradient, weight, x_BSi.detach()))

    def _run_merged(self, layer: MergedLora, x_BSi: Tensor) -> Tensor:
        if torch.is_grad_enabled():
            self._require_examples(layer.down, x_BSi)
            for weight in (layer.down, layer.up):
                self._calls[weight.name] = self._calls.get(weight.name, 0) + 1
        return layer.forward(x_BSi)

    def _require_examples(self, weight: TrackedWeight, x_BSi: Tensor) -> None:
        assert self._batch is not None
        B, S = self._batch.input_ids_BS.shape
        if x_BSi.dim() != 3 or tuple(x_BSi.shape[:2]) != (B, S):
            raise ConfigError(
                f"model.lora.targets: {weight.name} sees its input as {list(x_BSi.shape)}, not as [batch, tokens, "
                f"features] = [{B}, {S}, ...], so its gradient cannot be told apart by "
                "example (experts and routers do so); leave it out of the targets"
            )

    @torch.no_grad()
    def _on_gradient(self, weight: TrackedWeight, x_BSi: Tensor, grad_BSo: Tensor) -> None:
        if self._consume_factors is not None:
            factors = at_least_float32(grad_BSo) / self._scale, at_least_float32(x_BSi)
            self._factors.setdefault(weight.name, []).append(factors)
            self._calls[weight.name] -= 1
            if not self._calls[weight.name]:
                self._hand_on_factors(weight)
            return
        block_Bp = self._products(at_least_float32(grad_BSo), at_least_float32(x_BSi))
        if self._scale != 1.0:
            block_Bp /= self._scale
        self._deliver(weight, block_Bp)

    def _products(self, grad_BSo: Tensor, x_BSi: Tensor) -> Tensor:
        """Return sum_s grad_s x_s' of every example, [B, o * i]."""
        assert self._batch is not None
        if self._batch.packing is None:
            return torch.bmm(grad_BSo.transpose(1, 2), x_BSi).flatten(1)
        block_Boi = x_BSi.new_empty(len(self._batch.loss_tokens_B), grad_BSo.shape[2], x_BSi.shape[2])
        stacks = zip(self._batch.by_stack(grad_BSo), self._batch.by_stack(x_BSi), strict=True)
        for rows, (grad_bso, x_bsi) in zip(self._batch.stack_rows(), stacks, strict=True):
            torch.bmm(grad_bso.transpose(1, 2), x_bsi, out=block_Boi[rows])
        return block_Boi.flatten(1)

    def _deliver(self, weight: TrackedWeight, block_Bp: Tensor) -> None:
        """Hand on the gradients of a weight when those of all its calls have come."""
        self._calls[weight.name] -= 1
        earlier = self._partial.pop(weight.name, None)
        if earlier is not None:
            block_Bp += earlier
        if self._calls[weight.name]:
            self._partial[weight.name] = block_Bp
        else:
            self._done.add(weight.name)
            self._consume(weight, block_Bp)

    def _hand_on_factors(self, weight: TrackedWeight) -> None:
        assert self._consume_factors is not None
        assert self._batch is not None
        calls = self._factors.pop(weight.name)
        self._done.add(weight.name)
        grads, inputs = (zip(*(self._batch.by_stack(call[side]) for call in calls), strict=True) for side in (0, 1))
        for rows, grad, x in zip(self._batch.stack_rows(), grads, inputs, strict=True):
            self._consume_factors(weight, rows, torch.cat(grad, 1), torch.cat(x, 1))

    @torch.no_grad()
    def _flush(self, B: int) -> None:
        """Hand on what the backward has not reached, or not on all of its calls."""
        for weight in self.weights:
            if weight.name in self._factors:
                self._hand_on_factors(weight)
            if weight.name not in self._done:
                block_Bp = self._partial.pop(weight.name, None)
                if block_Bp is None:
                    parameter = weight.module.weight
                    dtype = torch.promote_types(parameter.dtype, torch.float32)
                    block_Bp = torch.zeros(B, weight.size, dtype=dtype, device=parameter.device)
                self._consume(weight, block_Bp)


def _sum_by_example(value_n: Tensor, batch: Batch) -> Tensor:
    # Through a dense [B, S] and not by index_add: on a GPU that would add in no fixed order.
    value_BS = torch.zeros(batch.input_ids_BS.numel(), dtype=torch.float64, device=value_n.device)
    value_BS[batch.position_n.to(value_n.device)] = value_n.double()
    stacks = batch.by_stack(value_BS.view(batch.input_ids_BS.shape))
    return torch.cat([value_bs.sum(1) for value_bs in stacks]).to(batch.input_ids_BS.device)


def _ignore(weight: TrackedWeight, block_Bp: Tensor) -> None:
    del weight, block_Bp
