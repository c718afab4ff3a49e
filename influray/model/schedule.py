"""The learning rate of every optimizer step, and its mean over an epoch: the weight of that epoch's checkpoint."""

from __future__ import annotations

import math
from typing import Literal

from influray.config_model import FinetuneConfig


def learning_rate_factor(
    step: int, total: int, schedule: Literal["linear", "cosine", "constant"], warmup_ratio: float
) -> float:
    """Return the fraction of the peak rate in force at `step` (from 0) of `total`.

    It rises from 0 over ceil(warmup_ratio * total) steps, and then falls to 0 at step `total` or stays. The rise is
    0 at step 0: with any warmup_ratio above 0 the first step moves nothing.

    Source: transformers optimization.py, get_{linear,cosine,constant}_schedule_with_warmup.
    """
    rising = math.ceil(warmup_ratio * total)
    if step < rising:
        return step / rising
    progress = (step - rising) / max(1, total - rising)
    if schedule == "linear":
        return max(0.0, 1.0 - progress)
    if schedule == "cosine":
        return max(0.0, 0.5 * (1.0 + math.cos(math.pi * progress)))
    return 1.0


def mean_rates(config: FinetuneConfig, examples: int) -> tuple[float, ...]:
    """Return the mean learning rate of every epoch of a training on so many examples, the last perhaps cut short.

    It is what LESS (arXiv 2402.04333, section 2.2) weighs the epoch's checkpoint by: the mean over the steps that were
    taken, the rate in force at each. An epoch that is the first step alone has the mean 0, and rightly so: its
    checkpoint is the adapter as it was made.
    """
    per_epoch = math.ceil(examples / config.batch_size)
    total = config.steps if config.steps is not None else config.epochs * per_epoch
    rates = [
        config.learning_rate * learning_rate_factor(step, total, config.schedule, config.warmup_ratio)
        for step in range(total)
    ]
    epochs = [rates[start : start + per_epoch] for start in range(0, len(rates), per_epoch)]
    return tuple(math.fsum(epoch) / len(epoch) for epoch in epochs)
