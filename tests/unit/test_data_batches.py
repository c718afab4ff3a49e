from __future__ import annotations

import itertools

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from influray.data.batches import ShardPlan, plan_batches, plan_shards

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
