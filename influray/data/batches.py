"""How rows are grouped: shards as units of work, batches as what goes through the model at once.

All follow from the data alone, so that the same rows meet in the same batches at any number of workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

# What a stack costs beside its tokens (attention and products of its own), in tokens.
STACK_COST = 128
WASTE = 0.1  # the share of padding in padded batches above which "auto" packs

Stacks = list[list[int]]  # of one batch: indices of examples that are padded to one length


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
    for index in _ascending(lengths):
        if batches and (len(batches[-1]) + 1) * lengths[index] <= token_budget:  # the longest so far
            batches[-1].append(index)
        else:
            batches.append([index])
    return batches


def plan_packed(lengths: Sequence[int], token_budget: int) -> list[Stacks]:
    """Return batches of stacks of indices into `lengths`: each index once, shortest first, equal lengths by index.

    A stack takes (longest length) x (examples) tokens and a batch the sum of its stacks, which is <= `token_budget`
    but for an example that is over it alone. Of all divisions into stacks it is the one of least padding, where each
    stack counts as STACK_COST tokens of it; the ends of batches divide stacks further.
    """
    batches: list[Stacks] = []
    room = 0
    for stack in _least_padding(lengths):
        left = stack
        while left:
            taken = _fitting(lengths, left, room)
            if not taken:
                batches.append([])
                room = token_budget
                taken = max(1, _fitting(lengths, left, room))
            batches[-1].append(left[:taken])
            room -= taken * int(lengths[left[taken - 1]])
            left = left[taken:]
    return batches


def plan_stacks(
    lengths: Sequence[int],
    token_budget: int,
    packing: Literal["auto", "on", "off"],
    can_pack: Callable[[], bool],
) -> list[Stacks]:
    """Return the batches of a shard: those of `plan_packed`, or those of `plan_batches` as one stack each.

    "auto" packs where padded batches waste more than WASTE of their tokens on padding and packed ones have fewer.
    `can_pack` says whether the model can; it is asked only where that matters.
    """
    padded = [[batch] for batch in plan_batches(lengths, token_budget)]
    if packing == "off":
        return padded
    packed = plan_packed(lengths, token_budget)
    before, after = batch_tokens(lengths, padded), batch_tokens(lengths, packed)
    wanted = packing == "on" or (after < before and before - int(np.sum(lengths)) > WASTE * before)
    return packed if wanted and can_pack() else padded


def batch_tokens(lengths: Sequence[int], batches: Sequence[Stacks]) -> int:
    """Return the tokens of all batches, padding included."""
    return sum(len(stack) * max(int(lengths[i]) for i in stack) for batch in batches for stack in batch)


def _ascending(lengths: Sequence[int]) -> list[int]:
    return sorted(range(len(lengths)), key=lambda i: (lengths[i], i))


def _fitting(lengths: Sequence[int], ascending: Sequence[int], room: int) -> int:
    """Return how many of the first examples fit into `room` tokens as one stack."""
    n = 0
    while n < len(ascending) and (n + 1) * lengths[ascending[n]] <= room:
        n += 1
    return n


def _least_padding(lengths: Sequence[int]) -> Stacks:
    """Return the division of all examples into stacks with the least padding + STACK_COST x stacks.

    By dynamic programming over the distinct lengths, ascending: examples of one length never gain from being divided.
    """
    if not len(lengths):
        return []
    length_U, count_U = np.unique(np.asarray(lengths, dtype=np.int64), return_counts=True)
    rows = np.concatenate([[0], np.cumsum(count_U)])  # of the first u lengths
    tokens = np.concatenate([[0], np.cumsum(count_U * length_U)])
    least, begin = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
    for end in range(1, len(rows)):
        padding = (rows[end] - rows[:end]) * length_U[end - 1] - (tokens[end] - tokens[:end])
        cost = least[:end] + padding + STACK_COST
        begin[end] = np.argmin(cost)
        least[end] = cost[begin[end]]
    order, stacks, end = _ascending(lengths), [], len(rows) - 1
    while end:
        stacks.append(order[rows[begin[end]] : rows[end]])
        end = int(begin[end])
    return stacks[::-1]
