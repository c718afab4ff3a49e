"""Base model, tokenizer and LoRA adapters, loaded from safetensors only and refused with a reason.

A base is loaded once; checkpoints are adapters that take turns on it. Digests name what was loaded by its content,
for the fingerprints of steps.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from influray.data import hub
from influray.model.adapter_files import read_adapter
from influray.model.adapter_weights import lora_config, require_covered, require_finite, require_the_same
from influray.protocols import ArtifactMismatch, ConfigError
from influray.store.artifact import fingerprint
from influray.store.checks import hash_once

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

    from influray.config_model import LoraConfig, ModelConfig

log = logging.getLogger(__name__)

ALL_LINEAR = "all-linear"  # as a LoRA target: every linear layer but the output head
ADAPTER = "default"  # peft's name of the one adapter; part of the parameter names that moments are keyed by


def load_tokenizer(model_config: ModelConfig) -> PreTrainedTokenizerFast:
    """Return the tokenizer of `model.base`.

    Raises:
        ConfigError: there is none, or it is a slow one, which cannot tell the offsets that loss masks are built from;
            or it gives token ids for which the model's embedding has no row.
    """
    from transformers import AutoTokenizer

    require_base(model_config)
    try:
        tokenizer = AutoTokenizer.from_pretrained(
            model_config.base,
            revision=model_config.revision,
            trust_remote_code=model_config.trust_remote_code,
            local_files_only=_only_local(model_config),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.base: {model_config.base!r} has no tokenizer that can be loaded ({_line(error)}); "
            "a folder needs tokenizer.json and tokenizer_config.json"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ConfigError(
            f"model.base: {model_config.base!r} has a slow tokenizer ({type(tokenizer).__name__}); loss masks need "
            "offsets, which only fast ones give: save it with a tokenizer.json"
        )
    _require_embedded(tokenizer, model_config)
    return tokenizer


def _require_embedded(tokenizer: PreTrainedTokenizerFast, model_config: ModelConfig) -> None:
    from transformers import PretrainedConfig

    facts, _ = PretrainedConfig.get_config_dict(model_config.base, revision=model_config.revision)
    nested = [part for part in facts.values() if isinstance(part, dict)]  # as of a model that also sees
    rows = [part["vocab_size"] for part in (facts, *nested) if isinstance(part.get("vocab_size"), int)]
    ids = tokenizer.get_vocab()
    # A padding token of its own stands in no text; many were added without a row.
    pad, template = tokenizer.pad_token, str(tokenizer.chat_template)
    if pad in ids and pad not in template and pad not in (tokenizer.bos_token, tokenizer.eos_token):
        del ids[pad]
    beyond = sorted(token for token, index in ids.items() if rows and index >= max(rows))
    if beyond:
        raise ConfigError(
            f"model.base: the tokenizer of {model_config.base!r} gives {max(ids.values()) + 1} token ids, the model's "
            f"embedding has {max(rows)} rows (vocab_size in config.json), so {', '.join(map(repr, beyond[:3]))} cannot "
            "be read; use the tokenizer that the model was saved with, or save the model after "
            "resize_token_embeddings(len(tokenizer))"
        )


def load_base(
    model_config: ModelConfig, device: str | torch.device | None = None, device_map: str | None = None
) -> PreTrainedModel:
    """Return the causal LM of `model.base` in eval mode, without a key-value cache.

    `device` puts all of it on one device; `device_map` (such as "auto") spreads it over those that accelerate sees.

    Raises:
        ConfigError: no such model, no safetensors, weights that do not cover the model, or an attention kernel or
            quantization that is not installed.
    """
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM

    require_base(model_config)
    settings: dict[str, Any] = {}
    if model_config.attention != "auto":
        settings["attn_implementation"] = model_config.attention
    if device_map is not None:
        settings["device_map"] = device_map
    if model_config.quantization != "none":
        settings["quantization_config"] = _quantization(model_config)
        if device_map is None and device is not None:
            settings["device_map"] = {"": str(device)}  # quantized while loading: it cannot be moved afterwards
    try:
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            model_config.base,
            revision=model_config.revision,
            dtype=getattr(torch, model_config.dtype),
            trust_remote_code=model_config.trust_remote_code,
            local_files_only=_only_local(model_config),
            use_safetensors=True,
            output_loading_info=True,
            **settings,
        )
    except ImportError as error:
        raise ConfigError(f"model.attention: {model_config.attention!r} cannot be used ({_line(error)})") from error
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise no_model(model_config, error) from error
    model, info = loaded
    if info["missing_keys"]:
        # transformers would fill them with random numbers and only warn.
        missing = sorted(info["missing_keys"])
        raise ConfigError(
            f"model.base: the weights of {model_config.base!r} lack {len(missing)} tensors of "
            f"{type(model).__name__}, such as {missing[0]}; it must hold a complete causal language model"
        )
    if device is not None and "device_map" not in settings:
        model = model.to(device)
    model.config.use_cache = False
    for module in model.modules():
        # On CPUs with AVX512-BF16, bitsandbytes repacks weights in eval mode for a product that has no backward.
        if getattr(module, "support_avx512bf16_for_cpu", False):
            module.support_avx512bf16_for_cpu = False
    return model.eval()


def _quantization(model_config: ModelConfig) -> Any:
    try:
        import bitsandbytes  # noqa: F401  # pyright: ignore[reportMissingImports, reportUnusedImport]
    except ImportError as error:
        raise ConfigError(
            f"model.quantization: {model_config.quantization!r} needs bitsandbytes, which cannot be imported "
            f'({_line(error)}); pip install "bitsandbytes>=0.46", or set it to none'
        ) from error
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=model_config.quantization,
        bnb_4bit_compute_dtype=getattr(torch, model_config.dtype),
    )


def check_lora_targets(model_config: ModelConfig) -> Any:
    """Look for the LoRA targets in the model's shape alone, and return its transformers config.

    No weights are read, so it takes a moment at any size.

    Raises:
        ConfigError: no such model, or a name of `model.lora.targets` ends the name of no linear layer.
    """
    from transformers import AutoConfig

    require_base(model_config)
    trust = model_config.trust_remote_code
    try:
        shape = AutoConfig.from_pretrained(
            model_config.base,
            revision=model_config.revision,
            trust_remote_code=trust,
            local_files_only=_only_local(model_config),
        )
    except (OSError, ValueError, KeyError) as error:
        raise no_model(model_config, error) from error
    _require_targets(empty_model(model_config, shape), tuple(model_config.lora.targets))
    return shape


def empty_model(model_config: ModelConfig, shape: Any) -> PreTrainedModel:
    """Return the causal LM of a transformers config without its weights. Raises ConfigError where there is none."""
    from transformers import AutoModelForCausalLM

    try:
        with torch.device("meta"):
            return AutoModelForCausalLM.from_config(shape, trust_remote_code=model_config.trust_remote_code)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise no_model(model_config, error) from error


def no_model(model_config: ModelConfig, error: Exception) -> ConfigError:
    """Return the error for a base that transformers cannot load."""
    return ConfigError(
        f"model.base: {model_config.base!r} cannot be loaded ({_line(error)}); it must be a folder with config.json "
        "and safetensors weights, or the hub id of a causal language model"
    )


def attach_new_adapter(model: PreTrainedModel, lora_config: LoraConfig, seed: int) -> PeftModel:
    """Return the model with a fresh LoRA adapter to train; `seed` alone decides its initial weights.

    Raises:
        ConfigError: a name of `model.lora.targets` ends the name of no linear layer.
    """
    import peft

    targets = tuple(lora_config.targets)
    _require_targets(model, targets)
    config = peft.LoraConfig(
        r=lora_config.r,
        lora_alpha=lora_config.alpha,  # pyright: ignore[reportArgumentType]  peft divides it by r; a float is as good
        lora_dropout=lora_config.dropout,
        target_modules=ALL_LINEAR if ALL_LINEAR in targets else list(targets),
        bias="none",
        task_type="CAUSAL_LM",
    )
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return peft.PeftModelForCausalLM(model, config, adapter_name=ADAPTER)


def attach_adapter(model: PreTrainedModel, adapter_folder: str | Path) -> PeftModel:
    """Return the model with a saved LoRA adapter, frozen and in eval mode: dropout is off.

    The base's weights are as before, bit for bit: peft's initialisations that change them are refused, and weights of
    the base that an adapter's file holds are compared with the base's and not loaded.

    Raises:
        ConfigError: the folder holds no adapter in safetensors, or one that trains more than plain LoRA matrices.
        ArtifactMismatch: the adapter does not fit the model, with the first tensor that does not.
    """
    import peft
    from peft.utils.save_and_load import load_peft_weights, set_peft_model_state_dict

    files = read_adapter(adapter_folder)
    device = str(next(model.parameters()).device)
    renamed = getattr(model, "_checkpoint_conversion_mapping", {})  # as from_pretrained: names of older transformers
    tensors = load_peft_weights(str(files.folder), device=device, key_mapping=renamed)
    frozen = {name: tensors.pop(name) for name in list(tensors) if ".lora_" not in name}
    require_the_same(model, frozen, files.folder)
    require_finite(tensors, files.folder)
    try:
        # The fields that were checked, and none of the file's others; the matrices are loaded, so that peft's plain
        # initialisation stands in for any other that leaves the base alone.
        adapted = peft.PeftModelForCausalLM(model, lora_config(files.facts), adapter_name=ADAPTER)
        set_peft_model_state_dict(adapted, tensors, adapter_name=ADAPTER)
    except (RuntimeError, ValueError, KeyError, TypeError, AssertionError) as error:
        raise ArtifactMismatch(
            f"{files.folder}: the adapter does not fit the base model ({_line(error)}); it needs the base it was "
            "trained on"
        ) from error
    require_covered(adapted, tensors, files.folder)
    adapted.requires_grad_(False)
    return adapted.eval()


def swap_adapter(model: PeftModel, adapter_folder: str | Path) -> PeftModel:
    """Return the same base with another adapter, bit for bit as a fresh load; `model` must not be used after."""
    # Unloading first, and not loading beside: the adapter keeps its name, which the moments' keys contain, and two
    # checkpoints may differ in rank or targets.
    return attach_adapter(model.unload(), adapter_folder)


def require_all_linear(model: PeftModel, lora_config: LoraConfig) -> None:
    """Raise ConfigError where `model.lora.targets` names all linear layers and an attached adapter leaves some out."""
    from peft.tuners.lora import LoraLayer
    from transformers.pytorch_utils import Conv1D

    if ALL_LINEAR not in lora_config.targets:
        return
    base: Any = model.get_base_model()
    left = {name for name, module in base.named_modules() if isinstance(module, nn.Linear | Conv1D)}
    for name, module in base.named_modules():
        if isinstance(module, LoraLayer):
            left = {one for one in left if not one.startswith(f"{name}.")}
    head = base.get_output_embeddings()
    left -= {name for name, module in base.named_modules() if module is head}
    if left:
        raise ConfigError(
            f"model.lora.targets: {ALL_LINEAR!r}, and the imported adapter leaves out {min(left)}; give the adapter's "
            "targets, or leave them out and they are taken from there"
        )


def model_digest(model_config: ModelConfig) -> str:
    """Return what stands for the base model in a fingerprint: a hash of config and weights, or the hub's commit.

    Raises:
        ConfigError: no such model.
    """
    folder = Path(model_config.base)
    require_base(model_config)
    if folder.is_dir():
        names = ("config.json", "*.safetensors", "*.safetensors.index.json", "*.py")
        paths = sorted({path for name in names for path in folder.glob(name)})
        return fingerprint([[path.name, hash_once(path)] for path in paths])
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(
            model_config.base,
            revision=model_config.revision,
            trust_remote_code=model_config.trust_remote_code,
            local_files_only=_only_local(model_config),
        )
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(
            f"model.base: {model_config.base!r} is neither a folder nor a model on the hub ({_line(error)})"
        ) from error
    commit = getattr(config, "_commit_hash", None)
    if not commit:
        raise ConfigError(
            f"model.base: the hub names no commit of {model_config.base!r} at {model_config.revision!r}, so what was "
            "loaded cannot be named; use a downloaded folder"
        )
    return f"{model_config.base}@{commit}"


def tokenizer_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash of all that decides how text becomes tokens, the tokenizer's own chat template included."""
    state = json.loads(tokenizer.backend_tokenizer.to_str())
    for setting in ("padding", "truncation"):  # of the last call, not of the tokenizer
        state.pop(setting, None)
    return fingerprint([type(tokenizer).__name__, state, tokenizer.chat_template, tokenizer.special_tokens_map])


def writing_digest(tokenizer: PreTrainedTokenizerFast) -> str:
    """Return a hash of all that decides what text tokens become: the decoder, what is cleaned up, special tokens."""
    special = sorted(number for number, token in tokenizer.added_tokens_decoder.items() if token.special)
    cleaned = getattr(tokenizer, "clean_up_tokenization_spaces", None)
    return fingerprint([tokenizer_digest(tokenizer), cleaned, special, sorted(tokenizer.all_special_ids)])


def _only_local(model_config: ModelConfig) -> bool:
    return not Path(model_config.base).is_dir() and hub.unreachable()


def require_base(model_config: ModelConfig) -> None:
    """Raise ConfigError where `model.base` is a folder without a model, or can be no hub id."""
    base = Path(model_config.base)
    gguf = [base] if base.suffix.lower() == ".gguf" else []
    if base.is_dir() and not (base / "config.json").exists():
        gguf += sorted(path for path in base.iterdir() if path.suffix.lower() == ".gguf")
    if gguf:
        raise ConfigError(
            f"model.base: {str(gguf[0])!r} is a GGUF, quantized for inference; name the model that it was made of, as "
            "safetensors. Where that is lost, transformers with `pip install gguf` reads it: m = AutoModelForCausalLM."
            f"from_pretrained({str(gguf[0].parent)!r}, gguf_file={gguf[0].name!r}); load m.state_dict() in a model of "
            "m.config without its quantization_config, save that and the tokenizer, and name their folder"
        )
    if base.is_dir():
        if not (base / "config.json").exists():
            # With peft installed transformers would read an adapter's folder and load the base *it* names.
            kind = "a peft adapter" if (base / "adapter_config.json").exists() else "no config.json"
            raise ConfigError(f"model.base: the folder {model_config.base!r} holds {kind}; it must hold a base model")
    elif base.is_absolute() or model_config.base.startswith((".", "~")) or model_config.base.count("/") > 1:
        raise ConfigError(
            f"model.base: there is no folder {model_config.base!r}; it must be a folder with config.json and "
            "safetensors weights, or a hub id such as meta-llama/Meta-Llama-3-8B"
        )


def _require_targets(model: nn.Module, targets: tuple[str, ...]) -> None:
    from transformers.pytorch_utils import Conv1D

    linear = [name for name, module in model.named_modules() if isinstance(module, nn.Linear | Conv1D)]
    for target in targets:
        if target != ALL_LINEAR and not any(name == target or name.endswith(f".{target}") for name in linear):
            endings = sorted({name.rpartition(".")[2] for name in linear})
            raise ConfigError(
                f"model.lora.targets: no linear layer of {type(model).__name__} is called {target!r}; there are "
                f"{', '.join(endings)}, or {ALL_LINEAR!r} for all but the head"
            )


def _line(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:300]
