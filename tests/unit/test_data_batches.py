from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influray.data.batches import (
    STACK_COST,
    ShardPlan,
    batch_tokens,
    plan_batches,
    plan_packed,
    plan_shards,
    plan_stacks,
)

lengths = st.lists(st.integers(1, 300), max_size=60)


@given(lengths, st.integers(1, 1000))
def test_batches_hold_every_index_once_within_the_budget_and_in_order_of_length(row_lengths, budget):
    batches = plan_batches(row_lengths, budget)
    order = [index for batch in batches for index in batch]
    assert sorted(order) == list(range(len(row_lengths)))
    assert [(row_lengths[i], i) for i in order] == sorted((row_lengths[i], i) for i in order)
    for batch in batches:
        assert batch
        padded = max(row_lengths[i] for i in batch) * len(batch)
        assert padded <= budget or len(batch) == 1


@given(lengths, st.integers(1, 1000))
def test_no_batch_could_have_taken_the_next_row_too(row_lengths, budget):
    batches = plan_batches(row_lengths, budget)
    for batch, following in itertools.pairwise(batches):
        assert (len(batch) + 1) * row_lengths[following[0]] > budget


def test_lengths_may_be_an_array():
    assert plan_batches(np.array([3, 1, 2], dtype=np.int32), 4) == [[1, 2], [0]]


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(1, 20))
def test_shards_cover_all_rows_and_cross_no_file(file_lengths, rows):
    shards = plan_shards(file_lengths, rows)
    assert [row for shard in shards for row in range(shard.start, shard.stop)] == list(range(sum(file_lengths)))
    ends = np.cumsum([0, *file_lengths])
    for shard in shards:
        assert 0 < len(shard) <= rows
        assert np.searchsorted(ends, shard.start, "right") == np.searchsorted(ends, shard.stop, "left")


@given(st.lists(st.integers(0, 50), max_size=8), st.integers(0, 50), st.integers(1, 20))
def test_a_file_at_the_end_leaves_the_earlier_shards_alone(file_lengths, more, rows):
    before = plan_shards(file_lengths, rows)
    assert plan_shards([*file_lengths, more], rows)[: len(before)] == before


def test_a_short_plan_by_hand():
    assert plan_shards([5, 0, 2], 2) == [ShardPlan(0, 2), ShardPlan(2, 4), ShardPlan(4, 5), ShardPlan(5, 7)]


@given(lengths, st.integers(1, 3000))
def test_packed_batches_hold_every_index_once_within_the_budget_and_in_order_of_length(row_lengths, budget):
    batches = plan_packed(row_lengths, budget)
    order = [index for batch in batches for stack in batch for index in stack]
    assert sorted(order) == list(range(len(row_lengths)))
    assert [(row_lengths[i], i) for i in order] == sorted((row_lengths[i], i) for i in order)
    for batch in batches:
        assert batch
        assert all(batch)
        assert batch_tokens(row_lengths, [batch]) <= budget or sum(map(len, batch)) == 1
    for batch, following in itertools.pairwise(batches):
        assert batch_tokens(row_lengths, [batch]) + row_lengths[following[0][0]] > budget, "there was room for one more"


def least_cost(ascending):
    """The least padding + STACK_COST x stacks over all divisions, by trying all of them."""
    best = None
    for cuts in itertools.product([False, True], repeat=max(0, len(ascending) - 1)):
        stacks = [[ascending[0]]]
        for cut, length in zip(cuts, ascending[1:], strict=True):
            if cut:
                stacks.append([])
            stacks[-1].append(length)
        cost = sum(len(s) * max(s) - sum(s) + STACK_COST for s in stacks)
        best = cost if best is None else min(best, cost)
    return best


@given(st.lists(st.integers(1, 900), min_size=1, max_size=9))
def test_no_division_into_stacks_has_less_padding(row_lengths):
    (batch,) = plan_packed(row_lengths, 10**6)
    cost = batch_tokens(row_lengths, [batch]) - sum(row_lengths) + STACK_COST * len(batch)
    assert cost == least_cost(sorted(row_lengths))


@given(lengths, st.integers(1, 3000), st.booleans())
def test_auto_packs_only_where_it_saves_tokens_and_padding_is_a_tenth(row_lengths, budget, can):
    padded = [[batch] for batch in plan_batches(row_lengths, budget)]
    asked = []
    found = plan_stacks(row_lengths, budget, "auto", lambda: asked.append(1) or can)
    before, after = batch_tokens(row_lengths, padded), batch_tokens(row_lengths, found)
    assert plan_stacks(row_lengths, budget, "off", lambda: True) == padded
    assert plan_stacks(row_lengths, budget, "on", lambda: can) == (plan_packed(row_lengths, budget) if can else padded)
    if found != padded:
        assert can
        assert asked == [1]
        assert after < before
        assert before - sum(row_lengths) > 0.1 * before
    elif not asked and before - sum(row_lengths) > 0.1 * before:
        assert batch_tokens(row_lengths, plan_packed(row_lengths, budget)) >= before


def test_a_shard_of_instructions_in_large_batches_loses_nearly_all_its_padding():
    rng = np.random.default_rng(0)
    row_lengths = np.clip(np.exp(rng.normal(np.log(160), 0.6, 512)), 8, 512).astype(int)
    padded = [[batch] for batch in plan_batches(row_lengths, 65536)]
    packed = plan_stacks(row_lengths, 65536, "auto", lambda: True)
    waste = [1 - row_lengths.sum() / batch_tokens(row_lengths, plan) for plan in (padded, packed)]
    assert waste[0] > 0.3
    assert waste[1] < 0.03
    assert sum(map(len, packed)) < 40
    assert plan_stacks(row_lengths, 4096, "auto", lambda: True) == [[b] for b in plan_batches(row_lengths, 4096)]
