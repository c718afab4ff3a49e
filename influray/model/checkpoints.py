"""The warmup checkpoint on disk: a peft adapter, Adam's moments by parameter name, and the facts of its epoch.

    checkpoint-{k}/adapter/{adapter_config.json, adapter_model.safetensors}
    checkpoint-{k}/moments.safetensors      "exp_avg/<name>", "exp_avg_sq/<name>"
    checkpoint-{k}/state.json               epoch, step, mean_learning_rate, constants of Adam, parameters, losses,
                                            and the sha256 of the other files

A checkpoint is written beside its place and renamed into it, so one that is there is whole.
"""

from __future__ import annotations

import os
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.config_model import ImportedCheckpoint
from influray.model.adapter_files import ADAPTER_CONFIG, ADAPTER_WEIGHTS, AdapterFiles, read_adapter
from influray.model.imported import require_one_step
from influray.model.optimizer_state import AdamMoments, Parameters, read_moments, strip_wrappers, write_moments
from influray.protocols import ArtifactMismatch, ConfigError
from influray.store.artifact import (
    fingerprint,
    hash_file,
    read_json,
    read_sealed,
    replace_folder,
    write_json,
    write_sealed,
)
from influray.store.checks import check_file
from influray.store.mirror import local, present_folder

if TYPE_CHECKING:
    from torch import nn

ADAPTER = "adapter"
MOMENTS_FILE = "moments.safetensors"
STATE = "state.json"


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint. `state` is state.json as it was written."""

    folder: Path
    state: Mapping[str, Any]

    @property
    def adapter(self) -> Path:
        """The folder that peft loads the adapter from."""
        return self.folder / ADAPTER

    @property
    def mean_learning_rate(self) -> float:
        return float(self.state["mean_learning_rate"])

    @property
    def parameters(self) -> list[tuple[str, tuple[int, ...]]]:
        """(name, shape) of the trained parameters, in the order of named_parameters()."""
        return [(name, tuple(shape)) for name, shape in self.state["parameters"]]

    def moments(self) -> AdamMoments:
        """Return Adam's moments, on the CPU.

        Raises:
            ArtifactMismatch: the checkpoint was imported without an optimizer state, or its file is not whole.
        """
        path = self.folder / MOMENTS_FILE
        if MOMENTS_FILE not in self.state["files"]:
            raise ArtifactMismatch(
                f"{self.folder}: holds no Adam moments; name the `optimizer` of the imported checkpoint, "
                "or set features.direction to sgd"
            )
        try:
            return read_moments(path, self.parameters, str(self.folder))
        except ConfigError as error:
            raise ArtifactMismatch(str(error)) from error

    @cached_property
    def digest(self) -> str:
        """The sha256 of what gradients depend on: adapter, moments, constants; not of paths and losses."""
        files = self.state["files"]
        config = read_json(self.adapter / ADAPTER_CONFIG)
        config.pop("base_model_name_or_path", None)
        facts = ("step", "mean_learning_rate", "beta1", "beta2", "epsilon", "parameters")
        return fingerprint(
            {
                "adapter": files[f"{ADAPTER}/{ADAPTER_WEIGHTS}"],
                "config": config,
                "moments": files.get(MOMENTS_FILE, ""),
                **{name: self.state[name] for name in facts},
            }
        )


def load_checkpoint(folder: str | Path) -> Checkpoint:
    """Return a checkpoint, all of whose files are what was committed.

    Raises:
        ArtifactMismatch: there is none, or one of another schema.
        DamagedArtifact: a file of it is damaged or gone.
    """
    folder = present_folder(local(folder))
    try:
        state = read_sealed(folder / STATE)
    except FileNotFoundError:
        raise ArtifactMismatch(f"{folder}: no checkpoint here; run `influray warmup` first") from None
    for name, sha256 in state["files"].items():
        check_file(folder / name, sha256)
    return Checkpoint(folder, state)


def trained_parameters(model: nn.Module) -> list[tuple[str, tuple[int, ...]]]:
    """Return (name, shape) of what a model trains, in the order of named_parameters()."""
    return [(name, tuple(p.shape)) for name, p in model.named_parameters() if p.requires_grad]


def save_checkpoint(
    folder: str | Path,
    model: nn.Module,
    moments: AdamMoments | None,
    *,
    epoch: int,
    mean_learning_rate: float,
    rows: int,
    losses: Sequence[float],
    facts: Mapping[str, Any] | None = None,
) -> Checkpoint:
    """Write a checkpoint of a peft model, replacing an older one of that name, and return it.

    Args:
        moments: None before the first step.
        epoch: from 1; 0 before the first step.
        mean_learning_rate: over the optimizer steps of this epoch.
        rows: examples trained on.
        losses: of all optimizer steps so far.
        facts: more entries of state.json.
    """
    with _replacing(Path(folder)) as work:
        save_adapter(model, work / ADAPTER)
        if moments is not None:
            write_moments(work / MOMENTS_FILE, moments)
        state = _state(moments, trained_parameters(model), epoch, mean_learning_rate)
        _commit(work, {**state, **(facts or {}), "rows": rows, "losses": list(losses)})
    return load_checkpoint(folder)


def save_adapter(model: nn.Module, folder: str | Path) -> None:
    """Write the adapter as peft reads it, and the same bytes each time.

    PeftModel.save_pretrained lists the target modules in the order of a set, which changes with every process,
    and adds a model card.
    """
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    peft_config: Any = model.peft_config
    config = dict(peft_config["default"].to_dict())
    base = getattr(model.get_base_model(), "name_or_path", None)  # pyright: ignore[reportCallIssue]
    config["base_model_name_or_path"] = config.get("base_model_name_or_path") or base
    config["inference_mode"] = True
    config = {name: sorted(value) if isinstance(value, set) else value for name, value in config.items()}
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file(
        {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()},
        folder / ADAPTER_WEIGHTS,
        metadata={"format": "pt"},
    )
    write_json(folder / ADAPTER_CONFIG, config)


def import_checkpoint(
    imported: ImportedCheckpoint,
    parameters: Parameters,
    out_folder: str | Path,
    *,
    epoch: int = 1,
    key: str = "warmup.checkpoints",
) -> Checkpoint:
    """Write the user's own adapter and optimizer state as a checkpoint and return it.

    Args:
        parameters: (name, shape) of what the model with this adapter trains, as `trained_parameters` returns.
        epoch: its place among the checkpoints, from 1.
        key: the dotted key that messages name.

    Raises:
        ConfigError: a file is missing or cannot be read, or the order of its parameters cannot be known.
        ArtifactMismatch: a parameter is missing, left over or of another shape, with its name and both shapes.
    """
    source = Path(imported.adapter)
    _check_adapter(read_adapter(source, f"{key}.adapter"), parameters, f"{key}.adapter")
    moments = None
    if imported.optimizer is not None:
        moments = read_moments(Path(imported.optimizer), parameters, f"{key}.optimizer")
        require_one_step(imported, moments.step, key)
    with _replacing(Path(out_folder)) as work:
        (work / ADAPTER).mkdir()
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(source / name, work / ADAPTER / name)
        if moments is not None:
            write_moments(work / MOMENTS_FILE, moments)
        state = _state(moments, parameters, epoch, imported.mean_learning_rate)
        _commit(work, {**state, "rows": None, "losses": [], "imported": True})
    return load_checkpoint(out_folder)


def _check_adapter(files: AdapterFiles, parameters: Parameters, key: str) -> None:
    # Weights of the base that the file holds are compared with the base's where the adapter is attached.
    found = {strip_wrappers(name): shape for name, shape in files.shapes.items() if ".lora_" in name}
    folder = files.folder
    for name, shape in parameters:
        stored = found.pop(strip_wrappers(name), None)
        if stored is None:
            raise ArtifactMismatch(f"{key}: {folder} has no {name!r}, which the model with [model.lora] trains")
        if stored != tuple(shape):
            raise ArtifactMismatch(
                f"{key}: {name!r} has shape {list(stored)} in {folder} and {list(shape)} in the model; "
                "model.base and its r must be those of the training"
            )
    if found:
        raise ArtifactMismatch(f"{key}: {folder} holds {min(found)!r}, which the model does not train")


def _state(
    moments: AdamMoments | None, parameters: Parameters, epoch: int, mean_learning_rate: float
) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "step": moments.step if moments else None,
        "mean_learning_rate": mean_learning_rate,
        **{name: getattr(moments, name, None) for name in ("beta1", "beta2", "epsilon")},
        "parameters": [[name, list(shape)] for name, shape in parameters],
    }


def _commit(work: Path, state: Mapping[str, Any]) -> None:
    files = {path.relative_to(work).as_posix(): hash_file(path) for path in sorted(work.rglob("*")) if path.is_file()}
    write_sealed(work / STATE, {**state, "files": files})


@contextmanager
def _replacing(folder: Path) -> Iterator[Path]:
    """Give a fresh folder that takes the place of `folder` when the block ends well, synced to disk."""
    work = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}.tmp")
    work.mkdir(parents=True)
    try:
        yield work
        for path in sorted(work.rglob("*")):
            descriptor = os.open(path, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        replace_folder(work, folder)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
