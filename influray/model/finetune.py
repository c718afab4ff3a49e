"""Supervised fine-tuning of a LoRA adapter: the loop of warmup and of tune.

The objective of an optimizer step is the mean over its examples of each example's mean loss over its trained tokens.
That is what LESS (arXiv 2402.04333) trains with a batch of one per device; transformers >= 4.46 would weigh examples
by their tokens as soon as gradients are accumulated. Order, dropout and rates are functions of (seed, epoch, step)
alone, so a run that was killed goes on from its last epoch and ends in the same bytes.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from influray.config import FinetuneConfig, WarmupConfig
from influray.model.checkpoints import Checkpoint, load_checkpoint
from influray.model.schedule import learning_rate_factor
from influray.protocols import ArtifactMismatch, ConfigError, DataError, TokenizedExample
from influray.store.artifact import fingerprint, hash_bytes
from influray.store.mirror import present_folder, remove_folder

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class FinetuneResult:
    """What a fine-tuning did, resumed epochs included.

    `losses` and `learning_rates` have one entry per optimizer step, `mean_learning_rates` one per epoch;
    `checkpoints` are the kept ones in order, the last of them the end of the training.
    """

    steps: int
    losses: tuple[float, ...]
    learning_rates: tuple[float, ...]
    mean_learning_rates: tuple[float, ...]
    checkpoints: tuple[Checkpoint, ...]


@dataclass(frozen=True)
class StepPlan:
    """Which examples make up which optimizer step, for any number of data-parallel ranks.

    An epoch takes every example once; its last step may be smaller. Over the ranks a step is dealt out in pieces of
    `device_batch_size`. Each example carries the weight 1 / (examples of its step), so that neither a smaller last
    step nor ranks with fewer examples than others change the objective: a rank that has none left goes through one
    of the step's with weight 0, since all ranks must meet in the gradient exchange.
    """

    examples: int
    batch_size: int
    device_batch_size: int
    ranks: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        return math.ceil(self.examples / self.batch_size)

    @property
    def accumulation(self) -> int:
        """Forward passes of one rank in a full step."""
        return math.ceil(min(self.batch_size, self.examples) / (self.device_batch_size * self.ranks))

    def steps(self, epoch: int) -> list[np.ndarray]:
        """Return the positions of each step's examples, in their order; `epoch` counts from 0."""
        order = seeded_order(self.examples, self.seed, epoch)
        return [order[i : i + self.batch_size] for i in range(0, self.examples, self.batch_size)]

    def passes(self, epoch: int, rank: int) -> Iterator[list[tuple[int, float]]]:
        """Yield (position, weight) of the examples of each forward pass of a rank, through the whole epoch."""
        deal = self.device_batch_size * self.ranks
        for step in self.steps(epoch):
            weight = 1.0 / len(step)
            for start in range(0, len(step), deal):
                first = start + rank * self.device_batch_size
                mine = step[first : min(first + self.device_batch_size, start + deal)]
                yield [(int(i), weight) for i in mine] or [(int(step[0]), 0.0)]


def seeded_order(n: int, *seed: int) -> np.ndarray:
    """Return a uniform permutation of range(n), int64, that depends on n and the seed alone.

    It sorts raw outputs of PCG64, which numpy keeps the same in all versions; its own shuffles it may change.
    """
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


def warmup_rows(n_pool: int, fraction: float, seed: int) -> np.ndarray:
    """Return the ascending positions of the seeded subset to warm up on, int64.

    The size is `fraction` as it is written in decimal, times `n_pool`, rounded down, but at least one.

    Raises:
        DataError: the pool is empty.
    """
    if n_pool < 1:
        raise DataError("data.pool: no usable row to warm up on")
    size = max(1, int(Fraction(repr(float(fraction))) * n_pool))
    return np.sort(seeded_order(n_pool, seed)[:size])


def process_group() -> tuple[int, int]:
    """Return (rank, ranks) of this process in torch.distributed; (0, 1) where there is none."""
    import torch.distributed as dist

    if dist.is_available() and dist.is_initialized():
        return dist.get_rank(), dist.get_world_size()
    return 0, 1


def barrier() -> None:
    """Wait for all ranks; alone, go on."""
    import torch.distributed as dist

    if process_group()[1] > 1:
        dist.barrier()


def finetune(
    model: nn.Module,
    examples: Sequence[TokenizedExample],
    config: FinetuneConfig,
    out_folder: str | Path,
    *,
    identity: str = "",
    keep: Literal["all", "last"] = "all",
    seconds_between: float = 0.0,
    resume: bool = True,
    on_epoch_checkpoint: Callable[[Checkpoint], None] | None = None,
) -> FinetuneResult:
    """Train the adapter of `model` in place and return what was done; checkpoints go to `out_folder`.

    The model must stand on the device it trains on; in a process group of torch.distributed every rank calls this
    with the same arguments and rank 0 writes. The bytes of a result hold for one number of ranks and one kind of
    hardware.

    Args:
        model: a peft model with a LoRA adapter; its trainable parameters are trained.
        identity: what else the result depends on, such as the base model; a checkpoint of another identity, config
            or set of examples is not resumed from.
        keep: every epoch's checkpoint, or only the latest.
        seconds_between: no checkpoint sooner than this after the last one, but for the end of the training.
        resume: go on from the last checkpoint in `out_folder` of the same training, if there is one.
        on_epoch_checkpoint: called on rank 0 with each checkpoint when it is committed.

    Raises:
        ConfigError: nothing can be trained this way: no rate above 0, or float16 weights.
        DataError: no examples, one without a trained token, or a loss that is not finite, with step and rows.
    """
    _require_trainable(model, examples)
    rank, ranks = process_group()
    plan = StepPlan(len(examples), config.batch_size, config.device_batch_size, ranks, config.seed)
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
    history = History(out, training, rank, keep, seconds_between, on_epoch_checkpoint)
    last = history.find() if resume else None
    barrier()  # before rank 0 clears what another rank may still be looking at
    history.clear(keep=last)

    from influray.model.sft import run_training_loop

    run_training_loop(model, examples, config, plan, factors, last, history)
    return history.result()


class History:
    """The course of a training and its checkpoints: which to resume from, when to write, what to keep."""

    def __init__(
        self,
        folder: Path,
        training: str,
        rank: int,
        keep: Literal["all", "last"],
        seconds_between: float,
        on_checkpoint: Callable[[Checkpoint], None] | None,
    ) -> None:
        self.folder = folder
        self.training = training
        self.writes = rank == 0
        self.keep = keep
        self.seconds_between = seconds_between
        self.on_checkpoint = on_checkpoint
        self.losses: list[float] = []
        self.learning_rates: list[float] = []
        self.mean_learning_rates: list[float] = []
        self._written = time.monotonic()

    def find(self) -> Checkpoint | None:
        """Return the latest checkpoint of this training and take over its course."""
        found = None
        for path in self.folder.glob("checkpoint-*"):
            try:
                checkpoint = load_checkpoint(path)
            except ArtifactMismatch as error:
                logger.warning("%s; training goes on without it", error)
                continue
            same = checkpoint.state.get("training") == self.training
            if same and (found is None or checkpoint.state["epoch"] > found.state["epoch"]):
                found = checkpoint
        if found is not None:
            self.losses = list(found.state["losses"])
            self.learning_rates = list(found.state["learning_rates"])
            self.mean_learning_rates = list(found.state["mean_learning_rates"])
            logger.info("resuming after epoch %d, step %d", found.state["epoch"], len(self.losses))
        return found

    def clear(self, keep: Checkpoint | None) -> None:
        """Delete what is not of this training, and what a killed writer left."""
        if not self.writes:
            return
        latest = keep.state["epoch"] if keep is not None else 0
        kept = {f"checkpoint-{k}" for k in range(1, latest + 1)}
        for path in (*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")):
            if path.name not in kept:
                remove_folder(path)

    def end_epoch(self, epoch: int, first_step: int, ended: bool, save: Callable[..., Checkpoint]) -> None:
        """Close an epoch (from 1) that began with `first_step`; `save` writes a checkpoint where one is due."""
        rates = self.learning_rates[first_step:]
        self.mean_learning_rates.append(math.fsum(rates) / len(rates))
        due = ended or time.monotonic() - self._written >= self.seconds_between
        if not (self.writes and due):
            return
        checkpoint = save(
            self.folder / f"checkpoint-{epoch}",
            epoch=epoch,
            mean_learning_rate=self.mean_learning_rates[-1],
            losses=self.losses,
            facts={
                "training": self.training,
                "learning_rates": self.learning_rates,
                "mean_learning_rates": self.mean_learning_rates,
            },
        )
        self._written = time.monotonic()
        if self.keep == "last":
            for path in self.folder.glob("checkpoint-*"):
                if path != checkpoint.folder:
                    remove_folder(path)
        if self.on_checkpoint is not None:
            self.on_checkpoint(checkpoint)

    def result(self) -> FinetuneResult:
        """Return the course, with the checkpoints that are kept."""
        folder = present_folder(self.folder)  # rank 0 wrote them, perhaps on another machine
        found = (load_checkpoint(path) for path in folder.glob("checkpoint-*"))
        return FinetuneResult(
            steps=len(self.losses),
            losses=tuple(self.losses),
            learning_rates=tuple(self.learning_rates),
            mean_learning_rates=tuple(self.mean_learning_rates),
            checkpoints=tuple(sorted(found, key=lambda checkpoint: checkpoint.state["epoch"])),
        )


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
