"""The groups of shards that sums are taken of: they follow from the shards alone and hold every row once."""

from __future__ import annotations

import pytest

from influray.data.batches import plan_shards
from influray.steps.score import GROUPS, group_bounds


@pytest.mark.parametrize("lengths", [[1], [5, 9], [700], [3] * 40, [64, 1, 64 * 16]])
def test_every_row_is_in_one_group_and_groups_are_few(lengths):
    shards = plan_shards(lengths, 4)
    groups = group_bounds(shards)
    assert [row for start, stop in groups for row in range(start, stop)] == list(range(sum(lengths)))
    assert len(groups) <= min(GROUPS, len(shards))
    edges = {shard.start for shard in shards}
    assert all(start in edges for start, _ in groups), "a shard is read by one worker"
