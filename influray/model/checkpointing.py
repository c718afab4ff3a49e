"""Layers that run another forward for a while, such as one that keeps its input alone and runs again when needed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from influray.protocols import ConfigError


def checkpointed_layers(model: nn.Module) -> list[nn.Module]:
    """Return the layers that transformers would checkpoint.

    Raises:
        ConfigError: there are none.
    """
    from transformers.modeling_layers import GradientCheckpointingLayer

    layers: list[nn.Module] = [module for module in model.modules() if isinstance(module, GradientCheckpointingLayer)]
    if not layers:
        raise ConfigError(
            f"features.gradient_checkpointing: {type(model).__name__} has no layers that transformers can checkpoint; "
            "set it to false"
        )
    return layers


def run_checkpointed(forward: Callable[..., Any], hidden_BSH: Tensor, *args: Any, **kwargs: Any) -> Any:
    """Return what `forward` does; of its activations only the first argument is kept for the backward."""
    from torch.utils.checkpoint import checkpoint

    if not torch.is_grad_enabled():
        return forward(hidden_BSH, *args, **kwargs)
    if not hidden_BSH.requires_grad:
        hidden_BSH = hidden_BSH.detach().requires_grad_()  # else the checkpoint would see nothing to differentiate
    # The reentrant kind runs without gradients first, so that hooks see one differentiable call and not two.
    return checkpoint(partial(forward, **kwargs), hidden_BSH, *args, use_reentrant=True, preserve_rng_state=False)


@contextmanager
def calling(module: nn.Module, forward: Callable[..., Any]) -> Iterator[None]:
    """Let a module run `forward` in place of its own."""
    before = module.__dict__.get("forward")  # accelerate puts one there
    module.forward = forward
    try:
        yield
    finally:
        if before is None:
            del module.forward
        else:
            module.forward = before
