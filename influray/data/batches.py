"""How rows are grouped: shards as units of work, batches as what goes through the model at once.

Both follow from the data alone, so that the same rows meet in the same batches at any number of workers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ShardPlan:
    """Catalogue rows [start, stop)."""

    start: int
    stop: int

    def __len__(self) -> int:
        return self.stop - self.start


def plan_shards(file_lengths: Sequence[int], rows_per_shard: int) -> list[ShardPlan]:
    """Return shards of at most `rows_per_shard` rows, ascending, without gaps; none holds rows of two files.

    So a file added at the end leaves every earlier shard as it is.
    """
    shards = []
    begin = 0
    for length in file_lengths:
        end = begin + length
        shards += [ShardPlan(start, min(start + rows_per_shard, end)) for start in range(begin, end, rows_per_shard)]
        begin = end
    return shards


def plan_batches(lengths: Sequence[int], token_budget: int) -> list[list[int]]:
    """Return batches of indices into `lengths`: each index once, shortest first, equal lengths by index.

    A batch takes (longest length) x (examples) <= `token_budget` padded tokens; an example that is over it alone
    is a batch of its own.
    """
    batches: list[list[int]] = []
    for index in sorted(range(len(lengths)), key=lambda i: (lengths[i], i)):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= token_budget:  # the longest so far
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches
