"""Which examples make up which optimizer step, as a function of the seed alone, and how ranks share the steps."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class StepPlan:
    """Which examples make up which optimizer step, for any number of data-parallel ranks.

    An epoch takes every example once; its last step may be smaller. Over the ranks a step is dealt out in pieces of
    `device_batch_size`. Each example carries the weight 1 / (examples of its step), so that neither a smaller last
    step nor ranks with fewer examples than others change the objective: a rank that has none left goes through one
    of the step's with weight 0, since all ranks must meet in the gradient exchange. Examples at the positions `without`
    keep their places, and their weight is 0: the sum of a step without their terms.
    """

    examples: int
    batch_size: int
    device_batch_size: int
    ranks: int
    seed: int
    without: frozenset[int] = frozenset()

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

    def steps_reaching(self, tokens: int, tokens_N: np.ndarray) -> int:
        """Return after how many steps at least so many tokens were gone through; example i has `tokens_N[i]`."""
        whole, left = divmod(tokens, int(tokens_N.sum()))
        through = np.cumsum([0, *(tokens_N[step].sum() for step in self.steps(whole))])
        return whole * self.steps_per_epoch + int(np.searchsorted(through, left))

    def passes(self, epoch: int, rank: int) -> Iterator[list[tuple[int, float]]]:
        """Yield (position, weight) of the examples of each forward pass of a rank, through the whole epoch."""
        deal = self.device_batch_size * self.ranks
        for step in self.steps(epoch):
            weight = 1.0 / len(step)
            for start in range(0, len(step), deal):
                first = start + rank * self.device_batch_size
                mine = step[first : min(first + self.device_batch_size, start + deal)]
                yield [(int(i), 0.0 if int(i) in self.without else weight) for i in mine] or [(int(step[0]), 0.0)]


def seeded_order(n: int, *seed: int) -> np.ndarray:
    """Return a uniform permutation of range(n), int64, that depends on n and the seed alone.

    It sorts raw outputs of PCG64, which numpy keeps the same in all versions; its own shuffles it may change.
    """
    keys = np.random.PCG64(np.random.SeedSequence(seed)).random_raw(n)
    return np.argsort(keys, kind="stable").astype(np.int64)


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
