"""The shape of a base model with its adapter, from its config alone: no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import nn

from influray.config_model import ModelConfig
from influray.model.loading import ALL_LINEAR, empty_model, no_model


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What the cost of a causal language model with an adapter depends on."""

    parameters: int  # of the base
    body: int  # weights of linear layers below the head: each multiplies every token
    head: int  # weights of the output head, which sees trained positions alone
    attention: int  # layers x query heads x head width
    layers: int
    lora: int  # P
    outputs: int  # numbers that the linear layers below the head put out for one token
    hidden: int  # numbers of a token's hidden state


def model_shape(model_config: ModelConfig) -> ModelShape | None:
    """Return the shape of `model.base`; None where it is a hub id that is not in the cache of this machine.

    A tied head counts among the parameters once, and multiplies like any other. Code of the model's author is run
    only where `model.trust_remote_code` says so.
    """
    from transformers import AutoConfig

    trust = model_config.trust_remote_code
    where = {"revision": model_config.revision, "trust_remote_code": trust, "local_files_only": True}
    try:
        settings = AutoConfig.from_pretrained(model_config.base, **where)
    except (OSError, ValueError, KeyError) as error:
        if Path(model_config.base).is_dir():
            raise no_model(model_config, error) from error
        return None
    model = empty_model(model_config, settings)
    head = model.get_output_embeddings()
    lora = model_config.lora
    body = outputs = adapter = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear) or module is head:
            continue
        body += module.weight.numel()
        outputs += module.out_features
        if any(t == ALL_LINEAR or name == t or name.endswith(f".{t}") for t in lora.targets):
            adapter += lora.r * (module.in_features + module.out_features)
    text = settings.get_text_config()
    heads = text.num_attention_heads
    width = getattr(text, "head_dim", None) or text.hidden_size // heads
    head_weights = head.weight.numel() if isinstance(head, nn.Linear) else 0
    return ModelShape(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        body=body,
        head=head_weights,
        attention=text.num_hidden_layers * heads * width,
        layers=text.num_hidden_layers,
        lora=adapter,
        outputs=outputs,
        hidden=text.hidden_size,
    )
