"""What a message says of its own training: weight, train, loss and their relatives in other tools."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray.data.turns import BadRow, shown

# OpenAI weight; axolotl train, training; ms-swift loss, loss_scale; xtuner loss, output_with_loss.
FLAGS = (
    "weight",
    "train",
    "training",
    "trainable",
    "loss",
    "loss_scale",
    "loss_weight",
    "loss_mask",
    "output_with_loss",
)
ANY_ROLE = ("train", "training", "trainable")  # with which other tools train what is not an answer
DETAILS = ("train_detail", "training_detail")
UNCLEAR = ("mask", "masked")
_VALUES = {"true": True, "1": True, "1.0": True, "false": False, "0": False, "0.0": False}


def is_trained(fields: dict[str, Any], role: str, where: str) -> bool:
    """Take the flags out of a message's fields and return whether the message is trained: true where none says no.

    Raises:
        BadRow: a flag that cannot be honoured: a fraction, parts of a turn, or a turn that is no answer.
    """
    trained = True
    for key in FLAGS:
        if key not in fields:
            continue
        value = fields.pop(key)
        if role == "assistant":
            trained = flag(value, f"{where}.{key}") and trained
        elif key in ANY_ROLE and flag(value, f"{where}.{key}"):
            raise BadRow(
                f"{where}.{key}: only answers are trained, not a {role} turn; leave the key out: data.columns: "
                f"{{ignore: [messages.{key}]}}"
            )
    for key in (*DETAILS, *UNCLEAR):
        value = fields.pop(key, None)
        if (not value and key in DETAILS) or value is None or role != "assistant":
            continue
        what = "parts of a turn cannot be trained" if key in DETAILS else "it says not whether 1 or 0 is trained"
        raise BadRow(
            f"{where}.{key}: {what}; write train: false beside turns that are not trained, or leave the key out: "
            f"data.columns: {{ignore: [messages.{key}]}}"
        )
    return trained


def flag(value: Any, where: str) -> bool:
    """Return what a flag says. Raises BadRow where it is neither true nor false, 1 nor 0."""
    if isinstance(value, str):
        value = _VALUES.get(value.strip().lower(), value)
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float) and value in (0, 1):
        return bool(value)
    raise BadRow(f"{where}: {shown(value)} cannot be honoured; a turn is trained (1 or true) or not (0 or false)")


def part_flag(part: Mapping[str, Any], where: str) -> bool | None:
    """Return what a part of a content says of its training, None where it says nothing. Raises BadRow as `flag`."""
    for key in ("train", "weight"):
        if part.get(key) is not None:
            return flag(part[key], f"{where}.{key}")
    return None
