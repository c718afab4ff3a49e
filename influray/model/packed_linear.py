"""Frozen weights in the layout that oneDNN's matrix products read, packed once for both directions.

Shape suffixes: i inputs, o outputs; leading axes are left as they are.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Products of 4096 rows on one thread of an AMD EPYC, GFLOP/s as PyTorch makes them and packed: 256 x 256 75 and 96,
# 256 x 704 88 and 107, 512 x 1408 86 and 106, 8 x 256 32 and 43. The first call of a shape costs 0.5 ms more.
_PACK_ENTRIES = 2**11
_PACK_BYTES = 2**31  # the most for the copies of a model's weights


class FrozenWeight:
    """A weight that stands still, as it is."""

    def __init__(self, weight_oi: Tensor, bias_o: Tensor | None = None) -> None:
        self._weight_oi, self._bias_o = weight_oi, bias_o

    def outputs(self, x_i: Tensor) -> Tensor:
        """Return W x + b."""
        return F.linear(x_i, self._weight_oi, self._bias_o)

    def input_gradient(self, grad_o: Tensor) -> Tensor:
        """Return W^T dL/dy."""
        return grad_o @ self._weight_oi


class PackedWeight(FrozenWeight):
    """A weight in two packed copies, one for each direction; nothing else of it is kept.

    A row's outputs have the same bits whatever rows are beside it, and one that is not finite spoils no other.
    """

    def __init__(self, weight_oi: Tensor, bias_o: Tensor | None = None) -> None:
        self._forward: Any = torch.ops.mkldnn._reorder_linear_weight(weight_oi.contiguous())
        self._backward: Any = torch.ops.mkldnn._reorder_linear_weight(weight_oi.T.contiguous())
        self._bias_o = bias_o

    def outputs(self, x_i: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(x_i, self._forward, self._bias_o, "none", [], "")

    def input_gradient(self, grad_o: Tensor) -> Tensor:
        return torch.ops.mkldnn._linear_pointwise(grad_o, self._backward, None, "none", [], "")


class FrozenLinear:
    """Stands in for the forward of a linear layer whose weight needs no gradient."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer
        self._weight = PackedWeight(layer.weight.detach(), layer.bias)

    def forward(self, x_i: Tensor) -> Tensor:
        return _Apply.apply(x_i, self._weight)  # pyright: ignore[reportReturnType]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_i: Tensor, weight: FrozenWeight) -> Tensor:
        ctx.weight = weight
        return weight.outputs(x_i)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None]:
        return ctx.weight.input_gradient(grads[0]), None


def packs(model: nn.Module) -> bool:
    """Return whether this PyTorch has oneDNN's products and the copies of the model's weights fit a bound."""
    there = torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    weights = sum(m.weight.nbytes for m in model.modules() if type(m) is nn.Linear and _packable(m.weight))
    return there and (not weights or copies_bytes(weights) > 0)


def copies_bytes(weight_bytes: int) -> int:
    """Return the bytes of both copies of weights of so many bytes; 0 where they are too many to be made."""
    return 2 * weight_bytes if 2 * weight_bytes <= _PACK_BYTES else 0


def frozen_weight(weight_oi: Tensor, bias_o: Tensor | None, packed: bool) -> FrozenWeight:
    """Return the weight for products, packed if that is wanted and pays."""
    return PackedWeight(weight_oi, bias_o) if packed and _packable(weight_oi) else FrozenWeight(weight_oi, bias_o)


def pack_linear(model: nn.Module, without: Iterable[nn.Module]) -> list[FrozenLinear]:
    """Return the plain linear layers that gain from it packed, except those in `without`."""
    if not packs(model):
        return []
    left_out = set(without)
    return [
        FrozenLinear(layer)
        for layer in model.modules()
        if type(layer) is nn.Linear
        and layer not in left_out
        and "forward" not in vars(layer)
        and _packable(layer.weight)
    ]


def _packable(weight_oi: Tensor) -> bool:
    return weight_oi.device.type == "cpu" and weight_oi.dtype == torch.float32 and weight_oi.numel() >= _PACK_ENTRIES
