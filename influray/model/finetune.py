"""Supervised fine-tuning of a LoRA adapter: the loop of warmup and of tune.

The objective of an optimizer step is the mean over its examples of each example's mean loss over its trained tokens.
That is what LESS (arXiv 2402.04333) trains with a batch of one per device; transformers >= 4.46 would weigh examples
by their tokens as soon as gradients are accumulated. Order, dropout and rates are functions of (seed, epoch, step)
alone, so a run that was killed goes on from its last epoch and ends in the same bytes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from influray.config_base import as_written
from influray.config_model import FinetuneConfig, WarmupConfig
from influray.model.checkpoints import Checkpoint
from influray.model.history import FinetuneResult, History, OnStep, Report
from influray.model.schedule import learning_rate_factor
from influray.model.step_plan import StepPlan, barrier, process_group, seeded_order
from influray.protocols import ConfigError, DataError, TokenizedExample
from influray.store.artifact import fingerprint, hash_bytes
from influray.store.mirror import present_folder

if TYPE_CHECKING:
    from torch import nn


def warmup_rows(n_pool: int, fraction: float, seed: int) -> np.ndarray:
    """Return the ascending positions of the seeded subset to warm up on, int64.

    The size is `fraction` as it is written in decimal, times `n_pool`, rounded down, but at least one.

    Raises:
        DataError: the pool is empty.
    """
    if n_pool < 1:
        raise DataError("data.pool: no usable row to warm up on")
    size = max(1, int(as_written(fraction) * n_pool))
    return np.sort(seeded_order(n_pool, seed)[:size])


def finetune(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    config: FinetuneConfig,
    out_folder: str | Path,
    *,
    identity: str = "",
    keep: Literal["all", "last", "none"] = "all",
    seconds_between: float = 0.0,
    resume: bool = True,
    without: frozenset[int] = frozenset(),
    on_epoch_checkpoint: Callable[[Checkpoint], None] | None = None,
    on_step: OnStep | None = None,
    report: Report = Report(),  # noqa: B008 - frozen
) -> FinetuneResult:
    """Train the adapter of `model` in place and return what was done; checkpoints go to `out_folder`.

    The model must stand on the device it trains on; in a process group of torch.distributed every rank calls this
    with the same arguments and rank 0 writes. The bytes of a result hold for one number of ranks and one kind of
    hardware.

    Args:
        model: a peft model with a LoRA adapter; its trainable parameters are trained.
        identity: what else the result depends on, such as the base model; a checkpoint of another identity, config
            or set of examples is not resumed from.
        keep: every epoch's checkpoint, only the latest, or none: then what was trained is `model` alone.
        seconds_between: no checkpoint sooner than this after the last one, but for the end of the training.
        resume: go on from the last checkpoint in `out_folder` of the same training, if there is one.
        without: positions of examples that weigh nothing: the others keep their steps, places and weights. Part of
            `identity`, where there are any.
        on_epoch_checkpoint: called on rank 0 with each checkpoint when it is committed.
        report: where transformers reports the steps.
        on_step: called on rank 0 after each optimizer step: how many are done, of how many, mean loss of the last ten.

    Raises:
        ConfigError: nothing can be trained this way: no rate above 0, or float16 weights.
        DataError: no examples, one without a trained token, or a loss that is not finite, with step and rows.
    """
    _require_trainable(model, examples)
    rank, ranks = process_group()
    plan = StepPlan(len(examples), config.batch_size, config.device_batch_size, ranks, config.seed, without)
    total = config.steps if config.steps is not None else config.epochs * plan.steps_per_epoch
    factors = [learning_rate_factor(step, total, config.schedule, config.warmup_ratio) for step in range(total)]
    if not any(factors):
        section = "warmup" if isinstance(config, WarmupConfig) else "tune"
        raise ConfigError(
            f"{section}.warmup_ratio: {config.warmup_ratio} of {total} optimizer step(s) is all of them, at learning "
            f"rate 0 ({len(examples)} examples, batch_size {config.batch_size}); lower {section}.batch_size or set "
            f"{section}.warmup_ratio to 0"
        )
    out = present_folder(out_folder)
    out.mkdir(parents=True, exist_ok=True)
    training = _training_identity(config, examples, identity)
    history = History(out, training, rank, keep, seconds_between, on_epoch_checkpoint, total, on_step)
    last = history.find() if resume else None
    barrier()  # before rank 0 clears what another rank may still be looking at
    history.clear(keep=last)

    from influray.model.sft import run_training_loop

    run_training_loop(model, examples, config, plan, factors, last, history, report)
    return history.result()


def _require_trainable(model: nn.Module, examples: Sequence[TokenizedExample]) -> None:
    import torch

    if not len(examples):
        raise DataError("no examples to train on")
    for example in examples:
        if not example.loss_tokens or example.loss_mask_S[0]:
            raise DataError(f"row {example.row}: no token that can be trained (position 0 has nothing before it)")
    if not any(p.requires_grad for p in model.parameters()):
        raise ConfigError("model.lora: the model has nothing to train; attach a new adapter first")
    if any(p.dtype == torch.float16 for p in model.parameters()):
        raise ConfigError(
            "model.dtype: float16 cannot be trained without losing small gradients; take bfloat16 or float32"
        )


def _training_identity(config: FinetuneConfig, examples: Sequence[TokenizedExample], identity: str) -> str:
    # Fields of FinetuneConfig alone: those that warmup and tune add say which examples, and these are hashed.
    fields = {name: getattr(config, name) for name in FinetuneConfig.model_fields}
    content = hash_bytes(
        *(
            part
            for e in examples
            for part in (
                np.array([e.row, e.tokens], np.int64).tobytes(),
                np.ascontiguousarray(e.input_ids_S, np.int32).tobytes(),
                np.ascontiguousarray(e.loss_mask_S, bool).tobytes(),
            )
        )
    )
    return fingerprint({"config": fields, "examples": content, "identity": identity})
