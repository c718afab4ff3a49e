"""Adam moments by parameter name, read from the optimizer states that common trainers write.

Trainer (`optimizer.pt`) and accelerate (`optimizer.bin`) number the parameters; FSDP (`optimizer.bin`) and
safetensors files name them. A file is only ever read as tensors and plain values: nothing in it is executed.
"""

from __future__ import annotations

import json
import pickle
import re
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.model.adam_slots import (
    MOMENTS,
    read_moment,
    read_step,
    refuse_shards,
    require_adam,
    require_signs,
    unnested,
    whole_step,
)
from influray.model.adapter_files import require_no_pointer
from influray.protocols import ArtifactMismatch, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

Parameters = Sequence[tuple[str, tuple[int, ...]]]  # (name, shape) in the order of named_parameters()

# What wrappers put into the dotted name of a parameter; none of it is part of the model.
WRAPPERS = {"module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod"}
# The parameters that transformers' Trainer puts into its second group, without weight decay
# (trainer.py, get_decay_parameter_names). No LoRA matrix of an attention or MLP layer is among them.
NO_DECAY = re.compile(r"bias|layernorm|rmsnorm|(?:^|\.)norm(?:$|\.)|_norm(?:$|\.)")
# What torch's restricted reader raises on files that are damaged or want more than tensors.
_UNREADABLE = (
    *(pickle.UnpicklingError, RuntimeError, EOFError, LookupError, ValueError, AttributeError, TypeError),
    *(OSError, OverflowError, AssertionError, ImportError, MemoryError, struct.error),
)


@dataclass(frozen=True)
class AdamMoments:
    """The running moments of Adam, float tensors by parameter name, and the constants that made them.

    `step` is the number of updates made; names and shapes are those of the peft model's named_parameters().
    """

    exp_avg: Mapping[str, Tensor]
    exp_avg_sq: Mapping[str, Tensor]
    beta1: float
    beta2: float
    epsilon: float
    step: int

    def of(self, names: Sequence[str]) -> AdamMoments:
        """Return the moments of these parameters alone; names that it has not are left out."""
        first, second = ({n: t[n] for n in names if n in t} for t in (self.exp_avg, self.exp_avg_sq))
        return replace(self, exp_avg=first, exp_avg_sq=second)


def write_moments(path: Path, moments: AdamMoments) -> None:
    """Write safetensors with keys "exp_avg/<name>" and "exp_avg_sq/<name>"; the constants are its metadata."""
    from safetensors.torch import save_file

    constants = {name: getattr(moments, name) for name in ("beta1", "beta2", "epsilon", "step")}
    tensors = {
        f"{kind}/{name}": tensor.detach().cpu().contiguous()
        for kind in MOMENTS
        for name, tensor in getattr(moments, kind).items()
    }
    # One metadata entry: the order of several would differ from process to process, and so would the bytes.
    save_file(tensors, path, metadata={"adam": json.dumps(constants, sort_keys=True)})


def read_moments(path: Path, parameters: Parameters, key: str = "moments") -> AdamMoments:
    """Return the moments of `parameters`, float tensors on the CPU, from any of the forms above.

    Integer keys carry no names. They are read in the order in which the writers number: all parameters of the
    first group, then of the next; one group holds them in the order of named_parameters(), Trainer's two are
    those with weight decay and those without. Where torch recorded `param_names`, these decide. Other groups
    than these are refused, as their order cannot be known. Every shape is checked in the order taken; a file
    whose author permuted parameters of equal shape by hand cannot be told from one that did not.

    Raises:
        ConfigError: no such file, not readable without running its code, not Adam's, or of unknown order.
        ArtifactMismatch: a parameter is missing, is not the model's, or has another shape.
    """
    tree = _read_tree(path, key)
    where = f"{key}: {path}"
    require_adam(tree["state"], where)
    slots, constants = _named_slots(tree, parameters, path, key)
    named = _match_names(slots, parameters, path, key)
    exp_avg, exp_avg_sq, steps = {}, {}, set()
    for name, shape in parameters:
        slot = named[name]
        for kind, out in zip(MOMENTS, (exp_avg, exp_avg_sq), strict=True):
            out[name] = read_moment(slot, kind, name, shape, where)
        steps.add(read_step(slot, name, where))
    require_signs(exp_avg, where)
    told = constants["step"] if constants["step"] is not None else max(filter(None, steps), default=0)
    step = whole_step(told, where)
    if not step:
        raise ConfigError(f"{where} does not say after how many steps it was written ('step')")
    return AdamMoments(exp_avg, exp_avg_sq, constants["beta1"], constants["beta2"], constants["epsilon"], step)


def strip_wrappers(name: str) -> str:
    """Return a parameter's name without what DDP, FSDP and torch.compile add, and without peft's adapter name."""
    pieces = [piece for piece in name.split(".") if piece not in WRAPPERS]
    return re.sub(r"\.(lora_[AB]|lora_embedding_[AB])\.default(?=\.|$)", r".\1", ".".join(pieces))


def _read_tree(path: Path, key: str) -> dict[Any, Any]:
    """Return {"state": {key: slot}, "param_groups": [...]} of any form."""
    refuse_shards(path, key)
    if not path.is_file():
        raise ConfigError(f"{key}: {path}: no such file (wanted: optimizer.pt, optimizer.bin or safetensors)")
    require_no_pointer(path, key)
    tree = _read_safetensors(path, key) if path.suffix == ".safetensors" else _read_torch(path, key)
    for nest in ("optimizer", "optim", "optimizer_state_dict"):  # as dcp_to_torch_save, torchtune and XLA nest it
        if isinstance(tree.get(nest), dict):
            tree = tree[nest]
    if "state" not in tree:
        tree = _unflatten(tree)
    if not isinstance(tree.get("state"), dict) or not tree["state"]:
        raise ConfigError(
            f"{key}: {path} holds no optimizer state (top-level keys: {sorted(map(str, tree))[:5]}), as plain SGD has "
            "none; directions of the kind adam need Adam's moments"
        )
    return {**tree, "state": unnested(tree["state"])}


def _read_torch(path: Path, key: str) -> dict[Any, Any]:
    import torch

    try:
        tree = torch.load(path, map_location="cpu", weights_only=True)
    except _UNREADABLE as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise ConfigError(
            f"{key}: {path} cannot be read without running code it contains, or is damaged ({reason}); "
            "save the optimizer's state_dict() alone, or its moments as safetensors"
        ) from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{key}: {path} holds a {type(tree).__name__}, not an optimizer's state_dict()")
    return tree


def _read_safetensors(path: Path, key: str) -> dict[Any, Any]:
    """Return the tree of "exp_avg/<name>" (ours) or "[state.]<name or number>.exp_avg" keys."""
    from safetensors import SafetensorError, safe_open

    state: dict[Any, dict[str, Any]] = {}
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            for flat in file.keys():  # noqa: SIM118 - a safetensors handle is no mapping
                head, _, rest = flat.partition("/")
                kind, name = (head, rest) if head in MOMENTS and rest else _split_flat(flat)
                state.setdefault(name, {})[kind] = file.get_tensor(flat)
    except (SafetensorError, OSError) as error:
        raise ConfigError(f"{key}: {path} is not a readable safetensors file: {error}") from error
    try:
        constants = json.loads(metadata["adam"])
        groups = [{"betas": (constants["beta1"], constants["beta2"]), "eps": constants["epsilon"]}]
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"{key}: {path} does not carry Adam's constants; its metadata needs an entry 'adam' with the JSON of "
            '{"beta1": ..., "beta2": ..., "epsilon": ..., "step": ...}'
        ) from error
    return {"state": state, "param_groups": groups, "step": constants.get("step")}


def _split_flat(flat: str) -> tuple[str, Any]:
    name, _, kind = flat.rpartition(".")
    name = name.removeprefix("state.")
    return kind, int(name) if name.isdigit() else name


def _unflatten(tree: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the nested form of torch's flattened one: "state.<name>.exp_avg", "param_groups.<name>.betas"."""
    state: dict[Any, dict[str, Any]] = {}
    group: dict[str, Any] = {}
    for flat, value in tree.items():
        if not isinstance(flat, str):
            continue
        if flat.startswith("state."):
            kind, name = _split_flat(flat)
            state.setdefault(name, {})[kind] = value
        elif flat.startswith("param_groups."):
            group[flat.rpartition(".")[2]] = value
    return {"state": state, "param_groups": [group]} if state else dict(tree)


def _named_slots(
    tree: Mapping[Any, Any], parameters: Parameters, path: Path, key: str
) -> tuple[dict[str, Mapping[str, Any]], dict[str, Any]]:
    """Return name -> the state of one parameter, and Adam's constants."""
    groups = [group for group in tree.get("param_groups") or [{}] if isinstance(group, dict)]
    constants = _constants(groups, f"{key}: {path}")
    constants["step"] = tree.get("step", constants["step"])
    state = tree["state"]
    if all(isinstance(name, str) for name in state):
        return dict(state), constants
    if not all(isinstance(number, int) for number in state):
        raise ConfigError(f"{key}: {path} mixes numbers and names as keys of its state")
    order = _numbering(groups, parameters, path, key)
    extra = sorted(set(state) - set(order))
    if extra:
        raise ArtifactMismatch(f"{key}: {path} has a state for parameter number {extra[0]}, of no param_group")
    return {order[number]: slot for number, slot in state.items()}, constants


def _constants(groups: Sequence[Mapping[str, Any]], where: str) -> dict[str, Any]:
    """Return Adam's constants, and the step where the groups keep it, as FusedAdam's do."""
    if any(isinstance(group.get("betas"), list | tuple) and len(group["betas"]) == 3 for group in groups):
        raise ConfigError(f"{where}: its param_groups have three betas, as AdEMAMix has, whose moments are not Adam's")
    try:
        betas = {tuple(float(beta) for beta in group["betas"]) for group in groups}
        epsilons = {float(group["eps"]) for group in groups}
        ((beta1, beta2),) = betas
        (epsilon,) = epsilons
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise ConfigError(f"{where}: its param_groups do not agree on one 'betas' and one 'eps'") from error
    if not (0 <= beta1 < 1 and 0 <= beta2 < 1 and 0 <= epsilon < 1):
        raise ConfigError(
            f"{where}: betas {beta1}, {beta2} and eps {epsilon} are not Adam's; betas lie in [0, 1), eps from 0 on"
        )
    if any(group.get("amsgrad") for group in groups):
        raise ConfigError(f"{where}: it is of Adam with amsgrad, which divides by another moment than exp_avg_sq")
    steps = {whole_step(group["step"], where) for group in groups if group.get("step") is not None}
    return {"beta1": beta1, "beta2": beta2, "epsilon": epsilon, "step": max(steps, default=None)}


def _numbering(groups: Sequence[Mapping[str, Any]], parameters: Parameters, path: Path, key: str) -> dict[int, str]:
    """Return number -> name."""
    try:
        members = [list(group.get("params", ())) for group in groups]
        numbers = [int(number) for group in members for number in group]
        if all("param_names" in group for group in groups):
            recorded = [str(name) for group in groups for name in group["param_names"]]
            return dict(zip(numbers, recorded, strict=True))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"{key}: {path}: its param_groups do not list numbered parameters ({error})") from error
    names = [name for name, _ in parameters]
    decayed = [name for name in names if not NO_DECAY.search(name)]
    plain = [name for name in names if NO_DECAY.search(name)]
    if len(numbers) != len(names):
        raise ArtifactMismatch(
            f"{key}: {path} numbers {len(numbers)} parameters, the adapter trains {len(names)}; "
            "[model.lora] and the adapter must be those of the training"
        )
    sizes = [len(group) for group in members if group]
    if len(sizes) == 1:
        order = names
    elif sizes == [len(decayed), len(plain)]:
        order = decayed + plain
    else:
        raise ConfigError(
            f"{key}: {path} numbers its parameters in groups of {sizes}, neither one group nor Trainer's "
            f"[{len(decayed)} with, {len(plain)} without weight decay], so the order is unknown; save them by name"
        )
    return dict(zip(numbers, order, strict=True))


def _match_names(
    slots: Mapping[str, Mapping[str, Any]], parameters: Parameters, path: Path, key: str
) -> dict[str, Mapping[str, Any]]:
    """Return the slots under the model's own names; none may be missing or left over."""
    wanted = {strip_wrappers(name): name for name, _ in parameters}
    found: dict[str, Mapping[str, Any]] = {}
    for written, slot in slots.items():
        name = wanted.get(strip_wrappers(written))
        if name is None:
            raise ArtifactMismatch(
                f"{key}: {path} holds a state for {written!r}, which the adapter does not train "
                f"(it trains {len(wanted)} parameters, such as {next(iter(wanted.values()), 'none')!r})"
            )
        if name in found:
            raise ArtifactMismatch(f"{key}: {path} holds two states for {name!r}")
        found[name] = slot
    missing = [name for name, _ in parameters if name not in found]
    if missing:
        raise ArtifactMismatch(f"{key}: {path} holds no state for {missing[0]!r} ({len(missing)} are missing)")
    return found
