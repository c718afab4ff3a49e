"""LoRA layers run through one merged matrix, with the gradients of both their factors made at once.

While weights stand still, W x + s B (A x) is (W + s B A) x: one product in place of three forward, and one in place
of three for the gradient of x. The per-example gradients need A x and B^T dL/dy besides, whatever the route.

Shape suffixes: B batch, S tokens, i inputs, o outputs, r rank.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from influray.model.packed_linear import frozen_weight, packs
from influray.model.tracked_weights import TrackedWeight

Deliver = Callable[[TrackedWeight, Tensor], None]  # (weight, its gradients by example [B, p])
Products = Callable[[Tensor, Tensor], Tensor]  # (dL/dy [B, S, o], x [B, S, i]) -> sums of dL/dy x' by example [B, p]


class MergedLora:
    """One LoRA layer that stands in for the adapter's own forward. Holds a merged copy of the layer's weight."""

    def __init__(
        self,
        layer: Any,
        down: TrackedWeight,
        up: TrackedWeight,
        deliver: Deliver,
        products: Products,
        packed: bool = False,
    ) -> None:
        self.layer, self.down, self.up, self._deliver, self._products = layer, down, up, deliver, products
        scaling = layer.scaling[layer.active_adapters[0]]
        scaled_down_ri = scaling * down.module.weight.detach()
        base_oi = layer.base_layer.weight.detach()
        merged_oi = torch.addmm(base_oi, up.module.weight.detach(), scaled_down_ri)
        self.merged = frozen_weight(merged_oi, layer.base_layer.bias, packed)
        self._down = frozen_weight(scaled_down_ri, None, packed)
        self._up = frozen_weight(scaling * up.module.weight.detach(), None, packed)
        # Autograd calls the backward only where some input needs a gradient; below the lowest adapter none does.
        self._anchor = torch.zeros((), device=base_oi.device, requires_grad=True)

    def forward(self, x_BSi: Tensor) -> Tensor:
        """Return what the layer returns, and deliver both gradients when the backward comes by."""
        return _Apply.apply(x_BSi, self._anchor, self)  # pyright: ignore[reportReturnType]

    @torch.no_grad()
    def products(self, x_BSi: Tensor, grad_BSo: Tensor) -> None:
        down_BSr, up_BSr = self._down.outputs(x_BSi), self._up.input_gradient(grad_BSo)
        self._deliver(self.up, self._products(grad_BSo, down_BSr))
        self._deliver(self.down, self._products(up_BSr, x_BSi))


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_BSi: Tensor, anchor: Tensor, merged: MergedLora) -> Tensor:
        del anchor
        ctx.merged = merged
        ctx.save_for_backward(x_BSi)
        return merged.merged.outputs(x_BSi)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, None, None]:
        (grad_BSo,), (x_BSi,) = grads, ctx.saved_tensors
        ctx.merged.products(x_BSi, grad_BSo)
        return ctx.merged.merged.input_gradient(grad_BSo) if ctx.needs_input_grad[0] else None, None, None


def merge_lora(
    model: nn.Module, weights: Iterable[TrackedWeight], deliver: Deliver, products: Products
) -> list[MergedLora]:
    """Return the LoRA layers that can be run merged: both factors tracked, nothing but plain LoRA on a linear layer.

    Only in float32 and float64: in half precision the merged weight would round small adapters away. And only on a
    CPU, where the products count; on a GPU the copy of the weights costs more than it gains.
    """
    from peft.tuners.lora.layer import Linear

    by_module = {weight.module: weight for weight in weights}
    merged, packed = [], packs(model)
    for layer in model.modules():
        if type(layer) is not Linear or len(layer.active_adapters) != 1:
            continue
        adapter = layer.active_adapters[0]
        base: Any = layer.base_layer
        down, up = (by_module.get(dict(table.items()).get(adapter)) for table in (layer.lora_A, layer.lora_B))  # pyright: ignore[reportArgumentType]
        plain = (
            type(base) is nn.Linear
            and base not in by_module
            and base.weight.device.type == "cpu"
            and base.weight.dtype in (torch.float32, torch.float64)
            and not (layer.merged or layer.disable_adapters or layer.lora_variant or layer.fan_in_fan_out)
            and not any(part._forward_hooks or part._forward_pre_hooks for part in layer.modules())
        )
        if plain and down is not None and up is not None:
            same = all(f.module.weight.dtype == base.weight.dtype and f.module.bias is None for f in (down, up))
            if same and "forward" not in vars(layer):
                merged.append(MergedLora(layer, down, up, deliver, products, packed))
    return merged
