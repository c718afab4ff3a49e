"""CoLoR-Filter's score one row and one model at a time: plain transformers and peft, no batch, float64."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from influray.protocols import TokenizedExample
from tests.reference.loop_features import loop_losses


def losses(base: Path, adapter: Path | None, examples: Sequence[TokenizedExample]) -> np.ndarray:
    """Return the mean loss of each example's answer tokens under the base, or the base with an adapter, [N]."""
    model = AutoModelForCausalLM.from_pretrained(base, use_safetensors=True)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, str(adapter))
    model = model.to(torch.float64)
    model.train(False)
    return np.array([loop_losses(model, example)[0] for example in examples])


def loss_drop(
    base: Path, adapters: Sequence[Path], examples: Sequence[TokenizedExample], normalised: bool = False
) -> np.ndarray:
    """Return the loss under the base less that under each adapter, [N, G]; normalised, over the former."""
    prior_N = losses(base, None, examples)
    columns = [prior_N - losses(base, adapter, examples) for adapter in adapters]
    return np.stack([column_N / prior_N if normalised else column_N for column_N in columns], axis=1)
