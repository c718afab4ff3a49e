"""A peft adapter as it lies on disk: what its two files say, and whether gradients of it can be computed right.

Neither torch nor peft is needed, so that a config is checked before anything starts. Fields of adapter_config.json
are judged one by one: those that plain LoRA has are taken over, those that change what the adapter computes are
refused by name, and so are fields that this version does not know, unless they are empty.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from influray.protocols import ConfigError

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
MAX_CONFIG_BYTES = 16 * 2**20  # EVA lists a rank for each module: some 100 KB for the largest models
LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# Initialisations that write A and B alone; loading the trained A and B makes them equal to any other.
PLAIN_INITS = ("true", "false", "none", "gaussian", "orthogonal", "eva")
# Those that also take something out of the base's weights, or replace them, so that A and B fit another base.
REWRITING_INITS = ("pissa", "olora", "corda", "lora_ga", "loftq")

# Fields that change what an adapter computes or trains, and in what way.
BEYOND_PLAIN_LORA = {
    "use_dora": "DoRA trains magnitudes beside the matrices",
    "lora_bias": "it trains biases beside the matrices",
    "modules_to_save": "it trains whole modules beside the matrices",
    "trainable_token_indices": "it trains rows of the embedding beside the matrices",
    "target_parameters": "its matrices belong to parameters, such as stacked experts, and not to linear layers",
    "layer_replication": "its model has other layers than the base",
    "megatron_config": "its layers are Megatron's",
    "alora_invocation_tokens": "aLoRA is active on a part of the tokens only",
    "use_qalora": "QA-LoRA pools its inputs",
    "velora_config": "VeLoRA computes another gradient in its backward",
    "monteclora_config": "MonteCLoRA samples its weights",
    "use_bdlora": "BD-LoRA's matrices are block-diagonal",
    "arrow_config": "Arrow routes between several adapters",
    "kasa_config": "KaSA cuts singular values off the base's weights and trains a diagonal",
}
# Fields that say nothing about what a trained adapter computes.
INERT = {
    "auto_mapping",
    "corda_config",
    "ensure_weight_tying",
    "eva_config",
    "inference_mode",
    "loftq_config",
    "lora_ga_config",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "revision",
    "runtime_config",
    "task_type",
}

Rank = Annotated[int, Field(ge=1, le=2**16)]
Scale = Annotated[float, Field(gt=0, allow_inf_nan=False)]


class LoraFacts(BaseModel):
    """The fields of adapter_config.json that decide what a plain LoRA adapter computes."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True)

    r: Rank
    lora_alpha: Scale
    target_modules: str | list[str]
    lora_dropout: Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)] = 0.0
    use_rslora: bool = False
    fan_in_fan_out: bool = False
    rank_pattern: dict[str, Rank] | None = None
    alpha_pattern: dict[str, Scale] | None = None
    exclude_modules: str | list[str] | None = None
    layers_to_transform: int | list[int] | None = None
    layers_pattern: str | list[str] | None = None
    init_lora_weights: bool | str | None = True
    bias: str = "none"
    base_model_name_or_path: str | None = None

    @property
    def scaling(self) -> float:
        """What B A x is multiplied by, where no pattern says otherwise."""
        return self.lora_alpha / (self.r**0.5 if self.use_rslora else self.r)

    @property
    def patterns(self) -> list[str]:
        """Fields that give layers different adapters, which `model.lora` cannot express."""
        given = ["rank_pattern", "alpha_pattern", "exclude_modules", "layers_to_transform"]
        return [name for name in given if getattr(self, name) not in (None, {}, [])]


@dataclass(frozen=True)
class AdapterFiles:
    """An adapter that can be attached. `shapes` are those of its tensors, by the names in the file."""

    folder: Path
    facts: LoraFacts
    shapes: Mapping[str, tuple[int, ...]]

    @property
    def frozen(self) -> list[str]:
        """Tensors that are no LoRA matrices: weights of the base that peft stores with adapters of the head."""
        return [name for name in self.shapes if ".lora_" not in name]


def read_adapter(folder: str | Path, key: str = "") -> AdapterFiles:
    """Return the adapter in a folder; its tensors are not read. `key` is the dotted key that messages begin with.

    Raises:
        ConfigError: a file is missing, damaged or a git-lfs pointer, or the adapter is more than plain LoRA.
    """
    folder = Path(folder)
    where = f"{key}: {folder}" if key else str(folder)
    for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
        if not (folder / name).is_file():
            raise ConfigError(f"{where} holds no {name}; {_instead(folder, name)}")
        require_no_pointer(folder / name, key)
    facts = _read_facts(folder / ADAPTER_CONFIG, where)
    shapes = _read_shapes(folder / ADAPTER_WEIGHTS, where)
    for name, shape in shapes.items():
        if ".lora_embedding_" in name:
            raise ConfigError(
                f"{where}: {name} adapts an embedding; gradient features cover LoRA matrices of linear layers only, "
                "so train it without that target"
            )
        if ".lora_" in name and (len(shape) != 2 or 0 in shape):
            raise ConfigError(
                f"{where}: {name} has shape {list(shape)} and is not whole, as ZeRO-3 and FSDP leave it where shards "
                "are not gathered before save_pretrained; gather them (DeepSpeed: zero_to_fp32.py) and save again"
            )
    return AdapterFiles(folder, facts, shapes)


def require_no_pointer(path: Path, key: str = "") -> None:
    """Raise ConfigError where a file is a git-lfs pointer in the place of its content."""
    with path.open("rb") as file:
        head = file.read(len(LFS_POINTER))
    if head == LFS_POINTER:
        where = f"{key}: " if key else ""
        raise ConfigError(f"{where}{path} is a git-lfs pointer, not the file itself; run `git lfs pull` where it lies")


def read_plain_json(path: Path, where: str, max_bytes: int = MAX_CONFIG_BYTES) -> dict[str, Any]:
    """Return the JSON object of a file. Raises ConfigError where it is none, or too large or deep to be one."""
    if path.stat().st_size > max_bytes:
        raise ConfigError(f"{where}: {path.name} has more than {max_bytes >> 20} MiB, which no such file has")
    try:
        tree = json.loads(path.read_bytes())
    except RecursionError:
        raise ConfigError(f"{where}: {path.name} is nested too deeply to be read") from None
    except (ValueError, OSError) as error:
        raise ConfigError(f"{where}: {path.name} is not readable JSON ({error})") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{where}: {path.name} holds a {type(tree).__name__}, not a mapping of fields")
    return tree


def _read_facts(path: Path, where: str) -> LoraFacts:
    tree = read_plain_json(path, where)
    kind = tree.pop("peft_type", None)
    if kind != "LORA":
        what = "no peft_type" if kind is None else f"peft_type {str(kind)[:80]!r}"
        raise ConfigError(f"{where}: {path.name} names {what}; gradient features need an adapter of type LORA")
    for name, why in BEYOND_PLAIN_LORA.items():
        if value := tree.pop(name, None):
            raise ConfigError(
                f"{where}: the adapter uses {name}={_short(value)}: {why}; gradient features cover plain LoRA matrices "
                "of linear layers only, so train it without"
            )
    known = {name: value for name, value in tree.items() if name not in INERT}
    try:
        facts = LoraFacts.model_validate(known)
    except ValidationError as error:
        first = error.errors()[0]
        field = ".".join(str(part) for part in first["loc"][:2])
        found = "" if first["type"] == "missing" else f" (found {_short(first['input'])})"
        raise ConfigError(f"{where}: {path.name}: {field}: {first['msg']}{found}") from None
    except OverflowError as error:
        raise ConfigError(f"{where}: {path.name}: a number is too large ({error})") from None
    unknown = [name for name, value in (facts.model_extra or {}).items() if value]
    if unknown:
        raise ConfigError(
            f"{where}: {path.name}: {unknown[0]}={_short(known[unknown[0]])} is not known here, so what the adapter "
            "computes is not either; it was written by another version of peft"
        )
    if facts.bias != "none":
        raise ConfigError(
            f"{where}: the adapter uses bias={facts.bias!r}: it trains biases beside the matrices; gradient features "
            "cover plain LoRA matrices of linear layers only, so train it without"
        )
    _require_patterns(facts, where)
    _require_plain_init(facts.init_lora_weights, where)
    return facts


def _require_patterns(facts: LoraFacts, where: str) -> None:
    patterns = [*(facts.rank_pattern or ()), *(facts.alpha_pattern or ())]
    patterns += [name for name in (facts.target_modules, facts.exclude_modules) if isinstance(name, str)]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except (re.error, RecursionError, OverflowError) as error:
            raise ConfigError(
                f"{where}: {ADAPTER_CONFIG}: {_short(pattern)} is no regular expression ({error})"
            ) from None


def _require_plain_init(init: bool | str | None, where: str) -> None:
    name = str(init).lower()
    if name in PLAIN_INITS:
        return
    used = f"the adapter uses init_lora_weights={_short(init)}"
    if name == "mica":
        raise ConfigError(
            f"{where}: {used}: MiCA trains A alone, with B frozen; gradient features take both matrices as trained"
        )
    if not name.startswith(REWRITING_INITS):
        raise ConfigError(
            f"{where}: {used}, which is not known here, so whether it changes the base is not either; if its matrices "
            "were trained beside unchanged weights of model.base, set it to true in adapter_config.json"
        )
    mend = (
        "save the weights that it was trained beside (model.unload().save_pretrained(FOLDER) right after "
        "get_peft_model), make FOLDER the model.base and set init_lora_weights to true in adapter_config.json"
    )
    if name != "loftq":
        mend = (
            "convert it with peft's save_pretrained(OUT, path_initial_model_for_weight_conversion=INITIAL), "
            f"which doubles the rank, so that its optimizer state no longer fits; or {mend}"
        )
    raise ConfigError(
        f"{where}: {used}, which changes the base's weights, so its matrices do not belong to model.base as it is; "
        f"{mend} (docs/checkpoints.md has both)"
    )


def _read_shapes(path: Path, where: str) -> dict[str, tuple[int, ...]]:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="np") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError) as error:
        raise ConfigError(
            f"{where}: {path.name} is not a whole safetensors file ({error}); copy it again from where it was written"
        ) from error
    if not any(".lora_" in name for name in shapes):
        raise ConfigError(f"{where}: {path.name} holds no LoRA matrix (of {len(shapes)} tensors)")
    return shapes


def _instead(folder: Path, name: str) -> str:
    """Return what is right, from what lies where an adapter should."""
    if not folder.is_dir():
        return "there is no such folder; it must be one that peft's save_pretrained wrote, in safetensors"
    there = sorted(path.name for path in folder.iterdir())
    if any(file.startswith("pytorch_model_fsdp") or file.endswith(".distcp") for file in there):
        return (
            "there are FSDP shards; load them into the peft model that was trained (accelerate's load_state) and "
            "write the adapter with its save_pretrained, or train with FSDP's FULL_STATE_DICT"
        )
    if name == ADAPTER_WEIGHTS and "adapter_model.bin" in there:
        return (
            "there is adapter_model.bin, a pickle, which is not read; load it where you trust it and save it with "
            "safetensors.torch.save_file, or with save_pretrained(safe_serialization=True)"
        )
    deepspeed = "zero_to_fp32.py" in there or any(re.match(r"global_step\d", file) for file in there)
    if deepspeed or any(re.match(r"(pytorch_model|model).*\.(bin|safetensors)$", file) for file in there):
        what = "a DeepSpeed checkpoint" if deepspeed else "weights of a whole model, such as zero_to_fp32.py writes"
        return (
            f"there is {what}; load its consolidated weights into the peft model that was trained "
            "(load_state_dict, strict=False) and write the adapter with save_pretrained"
        )
    inner = [file for file in there if (folder / file / name).is_file()]
    if inner:
        return f"one lies in {folder / inner[0]}"
    return "an adapter is what peft's save_pretrained writes, in safetensors"


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # more digits, or deeper, than Python prints
        text = f"an integer of {value.bit_length()} bits" if isinstance(value, int) else type(value).__name__
    return text if len(text) <= 100 else f"{text[:100]}..."
