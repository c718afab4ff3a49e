"""RMS norms whose weight needs no gradient, in a few passes over memory.

Written out in PyTorch's operations, as models have it, a norm passes over its input about twenty times forward and
backward and keeps four tensors of its size for the backward. Here it is nine times, and the input alone is kept.

Shape suffixes: H features, N whatever is before them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

# Forward and backward of 4096 rows on one thread of an AMD EPYC, ms of CPU as transformers writes it and here: 256
# features 6.9 and 3.2, 512 27 and 6.9, 768 20 and 7.6; F.rms_norm, which only CUDA has a kernel for, 13, 28 and 32.
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_EPSILONS = ("variance_epsilon", "eps", "epsilon")


class FrozenNorm:
    """Stands in for the forward of an RMS norm: y = w x / sqrt(mean(x^2) + epsilon), in float32, rounded once.

    `dtype` is that of the model.
    """

    def __init__(self, layer: nn.Module, weight_H: Tensor, epsilon: float, dtype: torch.dtype = torch.float32) -> None:
        self.layer, self._weight_H, self._epsilon = layer, weight_H.float(), epsilon
        exact = torch.equal(weight_H.float(), weight_H.to(dtype).float())
        self._kernel_weight_H = weight_H.to(dtype) if exact and weight_H.device.type == "cuda" else None

    def forward(self, x_NH: Tensor) -> Tensor:
        """Return what the layer returns, up to rounding."""
        if self._kernel_weight_H is not None and x_NH.dtype == self._kernel_weight_H.dtype:
            return F.rms_norm(x_NH, self._kernel_weight_H.shape, self._kernel_weight_H, self._epsilon)
        return _Apply.apply(x_NH, self._weight_H, self._epsilon)  # pyright: ignore[reportReturnType]


class _Apply(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_H: Tensor, epsilon: float) -> Tensor:
        float_NH = x_NH.float()
        mean_N1 = torch.linalg.vector_norm(float_NH, dim=-1, keepdim=True).square_().div_(x_NH.shape[-1])
        scale_N1 = mean_N1.add_(epsilon).rsqrt_()
        ctx.save_for_backward(x_NH, scale_N1)
        ctx.weight_H = weight_H
        return (float_NH * scale_N1).mul_(weight_H).to(x_NH.dtype)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor, None, None]:
        # With g = dL/dy w and s the scale: dL/dx = s (g - x s^2 (g . x) / H).
        x_NH, scale_N1 = ctx.saved_tensors
        float_NH = x_NH.float()
        grad_NH = grads[0] * ctx.weight_H
        along_N1 = torch.linalg.vecdot(grad_NH, float_NH)[..., None].mul_(scale_N1).mul_(scale_N1).div_(-x_NH.shape[-1])
        return grad_NH.addcmul_(float_NH, along_N1).mul_(scale_N1).to(x_NH.dtype), None, None


def frozen_norms(model: nn.Module) -> list[FrozenNorm]:
    """Return stand-ins for the RMS norms of a model, of whatever class, which a probe of each finds to be that."""
    return [found for layer in model.modules() if (found := _stand_in(layer)) is not None]


def _stand_in(layer: nn.Module) -> FrozenNorm | None:
    epsilon = next((value for name in _EPSILONS if isinstance(value := getattr(layer, name, None), float)), None)
    own = [*layer.named_parameters(), *layer.named_buffers()]
    if epsilon is None or [name for name, _ in own] != ["weight"] or "forward" in vars(layer):
        return None
    weight_H = own[0][1].detach()
    hooked = layer._forward_hooks or layer._forward_pre_hooks or layer._backward_hooks or layer._backward_pre_hooks
    if hooked or weight_H.dim() != 1 or weight_H.dtype not in _DTYPES or weight_H.device.type == "meta":
        return None
    for multiplier_H in (weight_H.float(), 1 + weight_H.float()):  # Gemma keeps what it adds to one
        made = FrozenNorm(layer, multiplier_H, epsilon, weight_H.dtype)
        if _agrees(made, weight_H):
            return made
    return None


@torch.no_grad()
def _agrees(made: FrozenNorm, weight_H: Tensor) -> bool:
    H = len(weight_H)
    # Large, with a mean of its own, and so small that epsilon shows.
    row_H = torch.sin(torch.arange(1, H + 1, dtype=torch.float32)) + 0.3
    x_NH = (row_H * torch.tensor([[1.0], [30.0], [1e-3]])).to(weight_H)
    try:
        expected_NH = made.layer(x_NH)
    except (RuntimeError, TypeError, ValueError, AttributeError, LookupError):  # it takes something else than states
        return False
    if not isinstance(expected_NH, Tensor) or expected_NH.shape != x_NH.shape or expected_NH.dtype != x_NH.dtype:
        return False
    # Models round in half precision before the weight and after it.
    allowed = max(1e-5, 4 * torch.finfo(weight_H.dtype).eps)
    return torch.allclose(made.forward(x_NH).float(), expected_NH.float(), rtol=allowed, atol=1e-8)
