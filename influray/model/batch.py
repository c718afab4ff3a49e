"""Tokenised examples as tensors: padded on the right, with the places that predict a trained token.

A padded batch has a line for each example. A packed one has a single line, [1, T], in which stacks of examples of
nearly one length stand one after the other; each stack is padded for itself, so that hardly any token is padding.

Shape suffixes: B examples (of a padded batch), S tokens (T of a packed batch's line), b examples and s tokens of one
stack, n trained positions, x whatever a position has.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from influray.protocols import TokenizedExample


@dataclass(frozen=True, slots=True)
class Packing:
    """How the line of a packed batch is divided. `sizes` are (examples, tokens of each) of its stacks, in order."""

    sizes: tuple[tuple[int, int], ...]
    position_ids_BS: Tensor  # of every token in its own example, [1, T]
    example_n: Tensor  # whose trained position it is


@dataclass(frozen=True, slots=True)
class Batch:
    """Examples padded on the right; `position_n`, ascending, are the places in B*S that predict a trained token.

    Where there is a `packing`, all examples stand in one line: tokens are [1, T] and not [B, S].
    """

    input_ids_BS: Tensor
    attention_mask_BS: Tensor
    position_n: Tensor
    label_n: Tensor
    loss_tokens_B: Tensor
    packing: Packing | None = None

    def example_n(self) -> Tensor:
        """Return which example each trained position belongs to, [n]."""
        if self.packing is not None:
            return self.packing.example_n
        return self.position_n.div(self.input_ids_BS.shape[1], rounding_mode="floor")

    def by_stack(self, value_BSx: Tensor) -> list[Tensor]:
        """Return views of the values of tokens, one for each stack, [b, s, x]; of a padded batch the whole."""
        if self.packing is None:
            return [value_BSx]
        parts = value_BSx[0].split([b * s for b, s in self.packing.sizes])
        return [part.unflatten(0, size) for part, size in zip(parts, self.packing.sizes, strict=True)]

    def stack_rows(self) -> list[slice]:
        """Return which examples stand in each stack, as `by_stack` has them."""
        if self.packing is None:
            return [slice(0, len(self.loss_tokens_B))]
        ends = list(accumulate(b for b, _ in self.packing.sizes))
        return [slice(end - b, end) for end, (b, _) in zip(ends, self.packing.sizes, strict=True)]


def make_batch(examples: Sequence[TokenizedExample], device: str | torch.device) -> Batch:
    """Return the examples as one right-padded batch. Each must have a trained token."""
    B, S = len(examples), max(example.tokens for example in examples)
    # Padding repeats the row's own first token, so that it brings nothing into a row that was not in it: the pad
    # token's embedding could be poisoned, and NaN times a masked weight of zero is NaN.
    ids_BS = np.empty((B, S), dtype=np.int64)
    trained_BS = np.zeros((B, S), dtype=bool)
    attended_BS = np.zeros((B, S), dtype=np.int64)
    for b, example in enumerate(examples):
        assert example.loss_tokens, f"row {example.row} has no trained token"
        assert not example.loss_mask_S[0], f"row {example.row}: nothing predicts its first token"
        ids_BS[b, : example.tokens] = example.input_ids_S
        ids_BS[b, example.tokens :] = example.input_ids_S[0]
        trained_BS[b, : example.tokens] = example.loss_mask_S
        attended_BS[b, : example.tokens] = 1
    label_at = np.flatnonzero(trained_BS)
    return Batch(
        input_ids_BS=torch.from_numpy(ids_BS).to(device),
        attention_mask_BS=torch.from_numpy(attended_BS).to(device),
        position_n=torch.from_numpy(label_at - 1).to(device),  # token s is predicted at s - 1
        label_n=torch.from_numpy(ids_BS.reshape(-1)[label_at]).to(device),
        loss_tokens_B=torch.from_numpy(trained_BS.sum(1)).to(device),
    )


def make_packed_batch(stacks: Sequence[Sequence[TokenizedExample]], device: str | torch.device) -> Batch:
    """Return the examples of all stacks as one packed batch, in order; a single stack makes a padded batch."""
    if len(stacks) == 1:
        return make_batch(stacks[0], device)
    parts = [make_batch(stack, "cpu") for stack in stacks]
    sizes = tuple((part.input_ids_BS.shape[0], part.input_ids_BS.shape[1]) for part in parts)
    begins = [0, *accumulate(b * s for b, s in sizes)]
    position_n = torch.cat([part.position_n + begin for part, begin in zip(parts, begins, strict=False)])
    loss_tokens_B = torch.cat([part.loss_tokens_B for part in parts])
    packing = Packing(
        sizes,
        torch.cat([torch.arange(s).repeat(b) for b, s in sizes])[None].to(device),
        torch.arange(len(loss_tokens_B)).repeat_interleave(loss_tokens_B).to(device),
    )
    return Batch(
        input_ids_BS=torch.cat([part.input_ids_BS.flatten() for part in parts])[None].to(device),
        attention_mask_BS=torch.cat([part.attention_mask_BS.flatten() for part in parts])[None].to(device),
        position_n=position_n.to(device),
        label_n=torch.cat([part.label_n for part in parts]).to(device),
        loss_tokens_B=loss_tokens_B.to(device),
        packing=packing,
    )


def at_trained(value_BSx: Tensor, batch: Batch) -> Tensor:
    """Return the values at the positions that predict a trained token, [n, x]."""
    return value_BSx.reshape(-1, value_BSx.shape[-1]).index_select(0, batch.position_n.to(value_BSx.device))
