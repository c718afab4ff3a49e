"""The course of a training and its checkpoints: which to resume from, when to write, what to keep."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from influray.model.checkpoints import Checkpoint, load_checkpoint
from influray.protocols import ArtifactMismatch
from influray.store.mirror import present_folder, remove_folder

logger = logging.getLogger(__name__)

RECENT = 10  # steps, over which the loss is averaged that is shown
OnStep = Callable[[int, int, float], None]  # steps done, of how many, mean loss of the last RECENT


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
class Report:
    """Where transformers reports a training (its `report_to`), under which name, and what numbers at its start."""

    to: tuple[str, ...] = ()
    name: str = ""
    facts: Mapping[str, float] = field(default_factory=dict)


@dataclass
class History:
    """One training, as rank 0 writes it and every rank reads it."""

    folder: Path
    training: str
    rank: int
    keep: Literal["all", "last", "none"]
    seconds_between: float
    on_checkpoint: Callable[[Checkpoint], None] | None
    total: int = 0  # optimizer steps of the whole training
    on_step: OnStep | None = None
    losses: list[float] = field(default_factory=list)
    learning_rates: list[float] = field(default_factory=list)
    mean_learning_rates: list[float] = field(default_factory=list)
    _written: float = field(default_factory=time.monotonic)

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
        if self.rank != 0:
            return
        latest = keep.state["epoch"] if keep is not None else 0
        kept = {f"checkpoint-{k}" for k in range(1, latest + 1)}
        for path in (*self.folder.glob("checkpoint-*"), *self.folder.glob(".checkpoint-*")):
            if path.name not in kept:
                remove_folder(path)

    def end_step(self, loss: float, learning_rate: float) -> None:
        """Record an optimizer step."""
        self.losses.append(loss)
        self.learning_rates.append(learning_rate)
        if self.rank == 0 and self.on_step is not None:
            self.on_step(len(self.losses), self.total, math.fsum(self.losses[-RECENT:]) / len(self.losses[-RECENT:]))

    def end_epoch(self, epoch: int, first_step: int, ended: bool, save: Callable[..., Checkpoint]) -> None:
        """Close an epoch (from 1) that began with `first_step`; `save` writes a checkpoint where one is due."""
        rates = self.learning_rates[first_step:]
        self.mean_learning_rates.append(math.fsum(rates) / len(rates))
        due = ended or time.monotonic() - self._written >= self.seconds_between
        if self.rank != 0 or not due or self.keep == "none":
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
