"""The tensors of an adapter against the model that it is put on: all of them there, finite, and the base untouched."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from influray.model.adapter_files import ADAPTER_WEIGHTS, LoraFacts
from influray.protocols import ArtifactMismatch, ConfigError

if TYPE_CHECKING:
    from peft import LoraConfig, PeftModel
    from transformers import PreTrainedModel

_ROWS = 4096  # of a stored weight compared at a time: the head of a large model has 2 GB


def lora_config(facts: LoraFacts) -> LoraConfig:
    """Return peft's config of a saved adapter, to be filled with its matrices."""
    import peft

    alike = ("r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "use_rslora", "fan_in_fan_out")
    alike += ("rank_pattern", "alpha_pattern", "layers_to_transform", "layers_pattern")
    given = {name: value for name in alike if (value := getattr(facts, name)) is not None}
    return peft.LoraConfig(**given, bias="none", task_type="CAUSAL_LM", inference_mode=True)


@torch.no_grad()
def require_the_same(model: PreTrainedModel, stored: Mapping[str, Tensor], folder: Path) -> None:
    """Compare weights of the base that an adapter's file holds with the base's own.

    peft stores those of the head and the embedding where one of them is adapted or the vocabulary was resized.

    Raises:
        ArtifactMismatch: the base has no such weight, or another.
    """
    where = f"{folder}/{ADAPTER_WEIGHTS}"
    if not stored:
        return
    own = dict(model.named_parameters(remove_duplicate=False)) | dict(model.named_buffers(remove_duplicate=False))
    for name, tensor in stored.items():
        plain = re.sub(r"(^|\.)base_layer(?=\.)", "", name.removeprefix("base_model.model."))
        weight: Any = own.get(plain)
        if weight is None:
            raise ArtifactMismatch(
                f"{where}: {name} is in the file but not in the base model; the adapter needs the base it was trained "
                "on, and nothing but LoRA matrices trained"
            )
        if weight.shape != tensor.shape:
            raise ArtifactMismatch(
                f"{where}: {name} has shape {list(tensor.shape)} and the base's weight {list(weight.shape)}; where the "
                "vocabulary was resized for the training, model.base must be the resized model"
            )
        if not _equal(weight, tensor):
            raise ArtifactMismatch(
                f"{where}: {name} differs from the base's weight: it was trained too, or on another base; gradient "
                "features need the frozen weights of model.base, so name the base that the adapter was trained on"
            )


def require_finite(tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise ConfigError with the first tensor that holds NaN or an infinity."""
    for name, tensor in tensors.items():
        if not torch.isfinite(tensor).all():
            raise ConfigError(f"{folder}/{ADAPTER_WEIGHTS}: {name} is not finite; its training had diverged")


def require_covered(model: PeftModel, tensors: Mapping[str, Tensor], folder: Path) -> None:
    """Raise where the matrices of a file and those that the model now has are not the same; peft only warns.

    Raises:
        ArtifactMismatch: a matrix is in one alone.
        ConfigError: peft put some on parameters that are no linear layers, as it does for experts that are stacked.
    """
    from peft import get_peft_model_state_dict

    config: Any = model.peft_config["default"]
    if config.target_parameters:
        raise ConfigError(
            f"{folder}: the adapter is one of experts that this transformers stacks into one parameter "
            f"({sorted(config.target_parameters)[0]}); gradient features cover linear layers only"
        )
    wanted = {name for name in get_peft_model_state_dict(model, save_embedding_layers=False) if ".lora_" in name}
    if differ := sorted(set(tensors) ^ wanted):
        name = differ[0]
        where = "but not in the base model" if name in tensors else "but not in the file"
        there = "in the file" if name in tensors else "in the base model"
        raise ArtifactMismatch(
            f"{folder}/{ADAPTER_WEIGHTS}: {name} is {there} {where}; the adapter needs the base it was trained on"
        )


def _equal(weight: Tensor, stored: Tensor) -> bool:
    """Whether two weights are the same in the coarser of their dtypes: one of them may have been rounded."""
    if not (weight.is_floating_point() and stored.is_floating_point()):
        return bool(torch.equal(weight, stored.to(weight.device, weight.dtype)))
    coarser = min(weight.dtype, stored.dtype, key=lambda dtype: -torch.finfo(dtype).eps)
    return all(
        torch.equal(own.to(coarser), other.to(own.device).to(coarser))
        for own, other in zip(weight.split(_ROWS), stored.split(_ROWS), strict=True)
    )
