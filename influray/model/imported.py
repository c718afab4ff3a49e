"""The user's own checkpoints before anything starts: each can be read, they differ, and `model.lora` is theirs.

Only configs and headers of files are read here; what moments hold is checked where they are imported.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.model.adam_slots import refuse_shards
from influray.model.adapter_files import (
    ADAPTER_WEIGHTS,
    AdapterFiles,
    read_adapter,
    read_plain_json,
    require_no_pointer,
)
from influray.protocols import ConfigError
from influray.store.artifact import hash_file

if TYPE_CHECKING:
    from influray.config import Config
    from influray.config_model import ImportedCheckpoint, LoraConfig

log = logging.getLogger(__name__)

TRAINER_STATE = "trainer_state.json"
SCALER = "scaler.pt"  # of float16 training, in which a step whose gradients overflow is counted but not made
ALL_LINEAR = "all-linear"


def settle_imported(config: Config) -> Config:
    """Return the config with `model.lora` as the imported adapters have it, where it is not given.

    Raises:
        ConfigError: an adapter or optimizer cannot be read, two adapters are the same, or a given field of `model.lora`
            is not theirs.
    """
    checkpoints = config.warmup.checkpoints
    if not checkpoints:
        return config
    found = []
    for number, one in enumerate(checkpoints):
        key = f"warmup.checkpoints.{number}"
        found.append(read_adapter(one.adapter, f"{key}.adapter"))
        if one.optimizer is not None:
            _require_file(Path(one.optimizer), f"{key}.optimizer")
        elif config.features.direction == "adam":
            raise ConfigError(
                f"{key}.optimizer: not given, and features.direction: adam needs the moments of every checkpoint; name "
                "the file (optimizer.pt, optimizer.bin or safetensors), or set features.direction to sgd"
            )
    _require_different(found)
    _compare_bases(found, config.model.base)
    lora = _settle_lora(config.model.lora, found, tuning=config.tune is not None)
    return config.model_copy(update={"model": config.model.model_copy(update={"lora": lora})})


def require_one_step(imported: ImportedCheckpoint, step: int, key: str) -> None:
    """Compare the step of an optimizer's moments with what the Trainer wrote beside adapter and optimizer.

    Raises:
        ConfigError: they are of different steps of the training.
    """
    assert imported.optimizer is not None
    folders = {"adapter": Path(imported.adapter), "optimizer": Path(imported.optimizer).parent}
    told = {name: _global_step(folder, f"{key}.{name}") for name, folder in folders.items()}
    skipped = any((folder / SCALER).is_file() for folder in folders.values())
    for name, other in told.items():
        if other is None or step == other or (skipped and step < other and len({*told.values()} - {None}) == 1):
            continue
        raise ConfigError(
            f"{key}: the moments of {imported.optimizer} are of step {step}, and {TRAINER_STATE} beside the {name} "
            f"tells of step {other}; adapter and optimizer must be of one checkpoint"
        )


def _global_step(folder: Path, where: str) -> int | None:
    path = folder / TRAINER_STATE
    if not path.is_file():
        return None
    step = read_plain_json(path, f"{where}: {folder}", max_bytes=2**30).get("global_step")
    if step is not None and (isinstance(step, bool) or not isinstance(step, int)):
        raise ConfigError(f"{where}: {path}: global_step is {str(step)[:60]}, not a number of steps")
    return step


def _require_file(path: Path, key: str) -> None:
    refuse_shards(path, key)
    if not path.is_file():
        raise ConfigError(f"{key}: {path}: no such file (wanted: optimizer.pt, optimizer.bin or safetensors)")
    if path.stat().st_size == 0:
        raise ConfigError(f"{key}: {path} is empty; copy it again from where it was written")
    require_no_pointer(path, key)


def _require_different(found: Sequence[AdapterFiles]) -> None:
    """Raise where two adapters are the same: each would only weigh twice, and one is most likely a slip."""
    seen: dict[tuple[str, str], int] = {}
    for number, files in enumerate(found):
        facts = files.facts.model_dump_json(exclude={"base_model_name_or_path"})
        earlier = seen.setdefault((hash_file(files.folder / ADAPTER_WEIGHTS), facts), number)
        if earlier != number:
            raise ConfigError(
                f"warmup.checkpoints.{number}.adapter: {files.folder} is the same adapter, byte for byte, as that of "
                f"warmup.checkpoints.{earlier} ({found[earlier].folder}); list each once, and raise its "
                "mean_learning_rate if it should weigh more"
            )


def _compare_bases(found: Sequence[AdapterFiles], base: str) -> None:
    for files in found:
        named = files.facts.base_model_name_or_path
        if named and _last(named) != _last(base) and Path(named).resolve() != Path(base).resolve():
            log.warning(
                "%s was trained on %s, and model.base is %s; rows are right only where they are the same weights",
                files.folder,
                named,
                base,
            )


def _last(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower()


def _settle_lora(lora: LoraConfig, found: Sequence[AdapterFiles], tuning: bool) -> LoraConfig:
    """Return `model.lora` with what was left out as the first adapter has it. Raises as `settle_imported`."""
    given = lora.model_fields_set
    own = [_as_lora(files) for files in found]
    for name in ("r", "alpha"):
        value, first = getattr(lora, name), own[0][name]
        if name in given and not any(math.isclose(value, one[name]) for one in own):
            raise ConfigError(
                f"model.lora.{name}: {value:g}, and the adapter {found[0].folder} of warmup.checkpoints.0 has "
                f"{first:g}; give the adapter's, or leave it out and it is taken from there"
            )
    if "targets" in given:
        misfits = [_misfit(lora.targets, files) for files in found]
        if all(misfits):
            raise ConfigError(
                f"model.lora.targets: {misfits[0]}; give the adapter's targets, or leave them out and they are taken "
                "from there"
            )
    missing = [name for name in ("r", "alpha", "targets", "dropout") if name not in given]
    differing = [name for name in missing if any(one[name] != own[0][name] for one in own)]
    patterns = sorted({name for files in found for name in files.facts.patterns})
    if tuning and missing and (differing or patterns):
        what = f"differ in {differing[0]}" if differing else f"use {patterns[0]}, which model.lora cannot express"
        raise ConfigError(
            f"model.lora: the adapters of warmup.checkpoints {what}, so what `tune` should train cannot be taken from "
            "them; give model.lora in full (r, alpha, targets, dropout)"
        )
    if tuning and patterns:
        log.warning("tune trains model.lora, and the imported adapters use %s besides", ", ".join(patterns))
    return type(lora).model_validate({**lora.model_dump(), **{name: own[0][name] for name in missing}})


def _as_lora(files: AdapterFiles) -> Mapping[str, Any]:
    """Return an adapter's shape in the fields of `model.lora`; of rsLoRA, the alpha that gives the same scaling."""
    facts, layers = files.facts, _layers(files)
    if isinstance(facts.target_modules, str):  # a regular expression
        targets = {layer.rpartition(".")[2] for layer in layers}
    else:
        targets = {target for target in facts.target_modules if _ending_in(target, layers)}
    return {
        "r": facts.r,
        "alpha": facts.scaling * facts.r if facts.use_rslora else float(facts.lora_alpha),
        "targets": tuple(sorted(targets)),
        "dropout": min(facts.lora_dropout, 0.99),  # peft takes 1 too, with which nothing is trained
    }


def _misfit(targets: Sequence[str], files: AdapterFiles) -> str:
    """Return in what the layers that `targets` names by their endings are not those adapted, "" where they are."""
    if ALL_LINEAR in targets:
        return ""  # which layers these are only the model knows: see require_all_linear
    layers = _layers(files)
    named = {target: _ending_in(target, layers) for target in targets}
    beside = layers - set().union(*named.values())
    if beside:
        return f"{', '.join(targets)} leave out {min(beside)}, which the adapter {files.folder} adapts"
    unused = [target for target in targets if not named[target]]
    return f"the adapter {files.folder} has no layer that ends in {unused[0]!r}" if unused else ""


def _layers(files: AdapterFiles) -> set[str]:
    return {re.sub(r"\.lora_[AB]\b.*$", "", name) for name in files.shapes if ".lora_" in name}


def _ending_in(target: str, layers: set[str]) -> set[str]:
    return {layer for layer in layers if layer.endswith(f".{target}")}
