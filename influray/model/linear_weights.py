"""Which linear layers' own weights are tracked, where gradients are not those of an adapter."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from influray.model.example_gradients import TrackedWeight, track
from influray.protocols import ConfigError


def linear_weights(model: nn.Module, endings: Sequence[str]) -> tuple[TrackedWeight, ...]:
    """Return the own weights of the linear layers whose names end so, in the order of named_parameters().

    Under an adapter these are the frozen weights, and their gradients those at the adapted model. Biases are left out.

    Raises:
        ConfigError: an ending that fits no linear layer, or fits a layer of another kind.
    """
    found: list[tuple[str, nn.Linear]] = []
    unused = dict.fromkeys(endings)
    for name, parameter in model.named_parameters():
        owner, _, kind = name.rpartition(".")
        if kind != "weight" or ".lora_" in name:
            continue
        plain = owner.removesuffix(".base_layer")
        fitting = [ending for ending in endings if plain == ending or plain.endswith(f".{ending}")]
        if not fitting:
            continue
        module = model.get_submodule(owner)
        if type(module) is not nn.Linear:
            raise ConfigError(
                f"features.weights: {plain} is a {type(module).__name__} of {tuple(parameter.shape)}; gradients of "
                "plain linear layers can be taken (torch.nn.Linear), or those of an adapter (lora)"
            )
        found.append((name, module))
        for ending in fitting:
            unused.pop(ending, None)
    if unused:
        raise ConfigError(
            f"features.weights: no linear layer of {type(model).__name__} is called {next(iter(unused))!r}; give "
            "endings of module names such as down_proj, or lora"
        )
    return track(found)
