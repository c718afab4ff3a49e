"""How many padded tokens a batch may have: what the user says, a measured constant on CPU, a trial on a GPU.

The budget decides the batches, and these the last bits of every row. So the trial looks at memory alone, which repeats
exactly where seconds would not, and against the whole of the card, not against what happens to be free.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from influray.protocols import TokenizedExample

if TYPE_CHECKING:
    from torch import nn

# On CPU. One thread, Llama of 1.3M parameters, 180 tokens a row, D = 1024, rows per CPU second on a busy machine:
# 1024 tokens 22, 2048 28, 4096 31, 8192 30.
CPU_TOKENS = 4096
GPU_TOKENS = (1024, 65536)  # the first trial, and where trials end
GPU_SHARE = 0.8  # of a card's memory for weights and a batch; the rest is fragmentation
SHORT_TOKENS = 16  # rows of the trial with the most examples: what an example takes counts most there


def resolve_token_budget(
    setting: int | Literal["auto"],
    model: nn.Module,
    device: str | torch.device,
    max_tokens: int,
    compute: Callable[[Sequence[TokenizedExample]], object],
) -> int:
    """Return the padded tokens a batch may have; the same for the same run and kind of hardware.

    "auto" on a GPU is by trial: made-up batches go through `compute`, and the largest that stays within a fixed share
    of each card's memory, as short rows and as rows of `max_tokens`, is taken. Never less than one longest example.
    """
    if setting != "auto":
        return setting
    device = torch.device(device)
    if device.type != "cuda":
        return max(CPU_TOKENS, max_tokens)
    devices = sorted({p.device.index for p in model.parameters() if p.device.type == "cuda"})

    def fits(tokens: int) -> bool:
        lengths = (min(SHORT_TOKENS, max_tokens), max_tokens)
        return all(_peak_share(devices, compute, made_up_batch(tokens, length)) <= GPU_SHARE for length in lengths)

    return max(max_tokens, largest_fitting(*GPU_TOKENS, fits))


def largest_fitting(low: int, high: int, fits: Callable[[int], bool]) -> int:
    """Return the largest of low, 2 low, 4 low, ... <= high up to which all fit; `low` where none does."""
    tokens = low
    while tokens <= high and fits(tokens):
        tokens *= 2
    return max(low, tokens // 2)


def made_up_batch(tokens: int, length: int) -> list[TokenizedExample]:
    """Return rows of `length` tokens, together at most `tokens` but at least one row; all but the first are trained."""
    ids_S = np.ones(length, dtype=np.int32)
    mask_S = np.arange(length) > 0
    return [TokenizedExample(row, ids_S, mask_S) for row in range(max(1, tokens // length))]


def _peak_share(devices: Sequence[int], compute: Callable[..., object], batch: Sequence[TokenizedExample]) -> float:
    """Return the largest share of a card's memory that was in use during `compute(batch)`; 2 where it ran out."""
    torch.cuda.empty_cache()
    for index in devices:
        torch.cuda.reset_peak_memory_stats(index)
    try:
        compute(batch)
    except torch.OutOfMemoryError:
        return 2.0
    finally:
        torch.cuda.empty_cache()
    totals = {index: torch.cuda.get_device_properties(index).total_memory for index in devices}
    return max(torch.cuda.max_memory_allocated(index) / total for index, total in totals.items())
