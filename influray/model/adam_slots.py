"""One parameter's slot of an optimizer state: Adam's two moments out of it, or the name of what wrote it.

bitsandbytes writes Adam's moments as state1 and state2: float32, or 8-bit codes of blocks, which are decoded as its
own update decodes them (csrc/kernels.cu, kOptimizerStatic8bit2StateBlockwise: qmap[code] * absmax[i // block size]).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from influray.protocols import ArtifactMismatch, ConfigError

if TYPE_CHECKING:
    from torch import Tensor

MOMENTS = ("exp_avg", "exp_avg_sq")
BITSANDBYTES = {"exp_avg": ("state1", "qmap1", "absmax1"), "exp_avg_sq": ("state2", "qmap2", "absmax2")}
BLOCK_SIZES = (256, 2048)  # of bitsandbytes' block-wise optimizers, today and before 0.45
ENOUGH_SIGNS = 64  # entries of a first moment; that none of so many is negative has the chance 2^-64
ZERO_PARTS = ("_optim_states.pt", "_model_states.pt")  # how DeepSpeed ends the names of its files

# What a slot holds beside or in place of the two moments -> the optimizer that keeps it.
KEPT_BY = {
    "exp_avg_sq_row": "Adafactor",
    "exp_avg_sq_col": "Adafactor",
    "row_var": "Adafactor",
    "acc_delta": "Adadelta",
    "momentum_buffer": "SGD with momentum, or Muon",
    "square_avg": "RMSprop",
    "sum": "Adagrad",
    "exp_inf": "Adamax",
    "mu_product": "NAdam",
    "max_exp_avg_sq": "Adam with amsgrad, which divides by another moment",
    "GG": "SOAP, whose moments are rotated",
    "unorm_vec": "LAMB or LARS",
    "projector": "GaLore, whose moments are projected",
    "z": "a schedule-free optimizer",
    "p0": "Prodigy",
    "exp_avg_diff": "Adan",
    "hessian": "Sophia",
    "max1": "an 8-bit optimizer of bitsandbytes that is not block-wise",
}

NESTED = "__bnb_optimizer_quant_state__"  # where bitsandbytes since 0.48 keeps all of a slot but its step


def unnested(slots: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return the slots with what bitsandbytes nests in them a level higher, where older versions have it."""
    found = {}
    for name, slot in slots.items():
        inner = slot.get(NESTED) if isinstance(slot, Mapping) else None
        if isinstance(inner, Mapping):
            slot = {**{key: value for key, value in slot.items() if key != NESTED}, **inner}
        found[name] = slot
    return found


def require_adam(slots: Mapping[Any, Any], where: str) -> None:
    """Raise ConfigError where the slots are not those of Adam, with the optimizer that keeps such."""
    advice = "directions of the kind adam need Adam's moments: train with AdamW, or set features.direction to sgd"
    for written, slot in slots.items():
        name = f"parameter {written}" if isinstance(written, int) else repr(written)
        keys = {str(key) for key in slot} if isinstance(slot, Mapping) else set()
        for key, optimizer in KEPT_BY.items():
            if key in keys:
                raise ConfigError(f"{where}: {name} has {key!r}, the state of {optimizer}; {advice}")
        if "exp_avg" in keys and "exp_avg_sq" not in keys:
            raise ConfigError(f"{where}: {name} has 'exp_avg' alone, the state of Lion or a relative; {advice}")
        if "state1" in keys and "state2" not in keys:
            raise ConfigError(
                f"{where}: {name} has 'state1' without 'state2', as Lion, SGD, RMSprop and Adagrad of bitsandbytes "
                f"have; {advice}"
            )
        unknown = keys - {"step", *MOMENTS, *(key for keys in BITSANDBYTES.values() for key in keys)}
        if unknown:
            raise ConfigError(
                f"{where}: {name} has {min(unknown)!r} beside Adam's moments (it holds {sorted(keys)}), so what its "
                f"optimizer does with them is not known; {advice}"
            )


def read_moment(slot: Any, kind: str, name: str, shape: tuple[int, ...], where: str) -> Tensor:
    """Return "exp_avg" or "exp_avg_sq" of a slot, float32 (float64 where it is), on the CPU.

    Raises:
        ConfigError: it is not there, not finite, in a form that is not known, or a second moment below zero.
        ArtifactMismatch: it has another shape.
    """
    import torch

    tensor = slot.get(kind) if isinstance(slot, Mapping) else None
    if tensor is None and isinstance(slot, Mapping):
        tensor = _bitsandbytes(slot, kind, name, where)
    if not isinstance(tensor, torch.Tensor) or not tensor.is_floating_point():
        holds = sorted(map(str, slot)) if isinstance(slot, Mapping) else type(slot).__name__
        raise ConfigError(
            f"{where}: {name!r} has no floating-point {kind!r} (it holds {holds}); only Adam's own moments can be "
            "used, not those of other optimizers or in quantised forms that are not known"
        )
    if tuple(tensor.shape) != tuple(shape):
        raise ArtifactMismatch(
            f"{where}: {kind} of {name!r} has shape {list(tensor.shape)}, the parameter has {list(shape)}; "
            "[model.lora] and the adapter must be those of the training"
        )
    if not torch.isfinite(tensor).all():
        raise ConfigError(f"{where}: {kind} of {name!r} is not finite; the training that wrote it had diverged")
    if kind == "exp_avg_sq" and (tensor < 0).any():
        raise ConfigError(
            f"{where}: exp_avg_sq of {name!r} is below zero ({float(tensor.min()):.3g}), which a mean of squares never "
            "is; the two moments may have been swapped when the file was made"
        )
    return tensor.float() if tensor.dtype != torch.float64 else tensor


def require_signs(first: Mapping[str, Tensor], where: str) -> None:
    """Raise ConfigError where first moments have no sign: then they are second ones, or of something else."""
    positive = negative = 0
    for tensor in first.values():
        positive += int((tensor > 0).sum())
        negative += int((tensor < 0).sum())
        if negative:
            return
    if positive >= ENOUGH_SIGNS:
        raise ConfigError(
            f"{where}: exp_avg has {positive} positive entries and no negative one, over {len(first)} parameters, "
            "which running means of gradients never have; exp_avg_sq stands in its place"
        )


def read_step(slot: Mapping[str, Any], name: str, where: str) -> int | None:
    """Return the number of updates that a slot tells of, None where it tells of none."""
    if slot.get("step") is None:
        return None
    return whole_step(slot["step"], where, f" of {name!r}")


def whole_step(value: Any, where: str, what: str = "") -> int:
    """Return a number of updates as an integer. Raises ConfigError where it is none."""
    try:
        step = float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        step = math.nan
    if not 0 <= step < 2**53 or step != int(step):
        raise ConfigError(f"{where}: 'step'{what} is {str(value)[:60]}, not a number of updates")
    return int(step)


def _bitsandbytes(slot: Mapping[str, Any], kind: str, name: str, where: str) -> Any:
    import torch

    state, qmap, absmax = (slot.get(key) for key in BITSANDBYTES[kind])
    if not isinstance(state, torch.Tensor) or state.dtype != torch.uint8:
        return state  # float32 as it stands; paged ones are plain tensors once they are in a file
    if not isinstance(qmap, torch.Tensor) or not isinstance(absmax, torch.Tensor):
        return None
    blocks = absmax.numel()
    sizes = [size for size in BLOCK_SIZES if -(-state.numel() // size) == blocks]
    if qmap.numel() != 256 or absmax.dim() != 1 or not sizes:
        raise ConfigError(
            f"{where}: {name!r}: the 8-bit {kind} of {state.numel()} codes has {list(absmax.shape)} block maxima and "
            f"{qmap.numel()} code values, which is no form of bitsandbytes' Adam that is known here; train with a "
            "32-bit AdamW, or set features.direction to sgd"
        )
    scale = absmax.float().repeat_interleave(sizes[0])[: state.numel()]
    return (qmap.float().flatten()[state.flatten().long()] * scale).view(state.shape)


def refuse_shards(path: Path, key: str) -> None:
    """Raise ConfigError where a path is a sharded state of FSDP or DeepSpeed, with what makes one file of it."""
    if path.is_dir():
        inside = {entry.name for entry in path.iterdir()}
        if "zero" in inside or any(name.endswith(ZERO_PARTS) for name in inside):
            _refuse_deepspeed(path, key, universal="zero" in inside)
        if ".metadata" in inside:
            raise ConfigError(
                f"{key}: {path} is a sharded state, as FSDP writes it, whose index is a pickle; make one file of it "
                f"where you trust it: python -m torch.distributed.checkpoint.format_utils dcp_to_torch {path} "
                "optimizer.pt (dcp_to_torch_save in Python), and name that"
            )
        steps = sorted(name for name in inside if name.startswith("global_step"))
        if steps:
            _refuse_deepspeed(path / steps[-1], key, universal=False)
        raise ConfigError(
            f"{key}: {path} is a folder, not a state; name the file in it (optimizer.pt, optimizer.bin or safetensors) "
            "- of FSDP's shards make one with torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        )
    if path.name.endswith(ZERO_PARTS):
        _refuse_deepspeed(path, key, universal=False)


def _refuse_deepspeed(path: Path, key: str, universal: bool) -> None:
    what = "a universal checkpoint of DeepSpeed" if universal else "a part of a DeepSpeed ZeRO checkpoint"
    convert = "" if universal else "first run deepspeed's ds_to_universal.py on it, then "
    raise ConfigError(
        f"{key}: {path} is {what}, whose files are pickles; {convert}write its moments by name as one safetensors file "
        "with the ten lines in docs/checkpoints.md, and name that"
    )
