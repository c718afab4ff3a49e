"""Which weights of linear layers have their gradients taken, and where each stands among the coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

from torch import nn

from influray.protocols import ConfigError


@dataclass(frozen=True, slots=True)
class TrackedWeight:
    """The weight of a linear layer and its place among the gradient's coordinates (row-major, [out, in])."""

    name: str  # as named_parameters() has it
    module: nn.Linear
    offset: int

    @property
    def size(self) -> int:
        return self.module.weight.numel()


def lora_weights(model: nn.Module) -> tuple[TrackedWeight, ...]:
    """Return all LoRA matrices of a peft model in the order of named_parameters().

    Raises:
        ConfigError: the adapter holds something other than weights of linear layers.
    """
    found: list[tuple[str, nn.Linear]] = []
    for name, _ in model.named_parameters():
        if ".lora_" not in name:
            continue
        owner, _, kind = name.rpartition(".")
        module = model.get_submodule(owner) if kind == "weight" else None
        if not isinstance(module, nn.Linear):
            raise ConfigError(
                f"model.lora.targets: {name} is not the weight of a linear layer; gradient features cover LoRA "
                "matrices of linear layers only"
            )
        found.append((name, module))
    if not found:
        raise ConfigError("model.lora.targets: the model has no LoRA matrices; attach an adapter first")
    return track(found)


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


def of_last_layers(
    model: nn.Module, weights: Sequence[TrackedWeight], how_many: Callable[[int], int]
) -> tuple[TrackedWeight, ...]:
    """Return those weights that lie in the model's last `how_many(number of layers)` layers, with offsets of their own.

    The layers are those of the outermost ModuleList that the weights lie in.

    Raises:
        ConfigError: a weight lies in none.
    """
    found = []
    for weight in weights:
        parts = weight.name.split(".")
        lists = (n for n in range(1, len(parts)) if isinstance(model.get_submodule(".".join(parts[:n])), nn.ModuleList))
        start = next(lists, None)
        if start is None:
            raise ConfigError(f"features.layers: {weight.name} lies in none of the layers; set it to all")
        found.append((".".join(parts[:start]), int(parts[start])))
    total = max(len(cast(nn.ModuleList, model.get_submodule(name))) for name, _ in found)
    first = total - how_many(total)
    kept = zip(weights, found, strict=True)
    return track([(weight.name, weight.module) for weight, (_, number) in kept if number >= first])


def track(named: Sequence[tuple[str, nn.Linear]]) -> tuple[TrackedWeight, ...]:
    """Return the given weights with their offsets, in the given order."""
    offset, weights = 0, []
    for name, module in named:
        weights.append(TrackedWeight(name, module, offset))
        offset += module.weight.numel()
    return tuple(weights)
