"""Which workers a pool takes for hung: by others' shards, by fixed bounds where there are none, never while they wait."""

from __future__ import annotations

import collections
import time

import pytest

from influray.runtime.pool_state import (
    HUNG_FIRST_SECONDS,
    HUNG_FLOOR_SECONDS,
    HUNG_START_SECONDS,
    HUNG_TIMES,
    Item,
    PoolRun,
    Worker,
)
from influray.runtime.tasks import ShardTask, WorkerInfo


def pool_run(longest=0.0, starts_failed=0):
    run = PoolRun([], lambda *_: None, lambda *_: None, collections.deque(), 1)
    run.longest, run.starts_failed = longest, starts_failed
    return run


def worker(age, *, placed=True, up=True, tries=None):
    item = None if tries is None else Item(ShardTask("key", "pool", 1, 0, 3, "folder"), tries=tries)
    info = WorkerInfo("host-1") if up else None
    return Worker(None, None, time.monotonic() - age, None if placed else object(), info, item)


@pytest.mark.parametrize(
    ("longest", "tries", "limit"),
    [
        (0.0, 0, HUNG_FIRST_SECONDS),
        (0.0, 1, 2 * HUNG_FIRST_SECONDS),
        (1.0, 0, HUNG_FLOOR_SECONDS),
        (100.0, 0, HUNG_TIMES * 100),
        (100.0, 2, 4 * HUNG_TIMES * 100),
    ],
)
def test_a_shard_is_waited_for_as_long_as_others_and_its_attempts_allow(longest, tries, limit):
    run = pool_run(longest)
    assert run.overdue(worker(limit - 5, tries=tries)) == ""
    assert "no answer after" in run.overdue(worker(limit + 5, tries=tries))


@pytest.mark.parametrize("failed", [0, 2])
def test_a_start_is_waited_for_from_the_moment_there_is_a_process(failed):
    run, limit = pool_run(starts_failed=failed), HUNG_START_SECONDS * 2**failed
    assert run.overdue(worker(limit - 5, up=False)) == ""
    assert "after it was given a place" in run.overdue(worker(limit + 5, up=False))
    assert run.overdue(worker(10 * limit, up=False, placed=False)) == "", "it waits for room"


def test_an_idle_worker_is_never_overdue():
    assert pool_run(1.0).overdue(worker(1e9)) == ""


def test_a_slow_first_shard_is_told_of_now_and_then_and_none_once_a_shard_is_done():
    run, slow = pool_run(), [worker(HUNG_FLOOR_SECONDS + 5, tries=0)]
    assert "the first shard is not done" in run.slow_first(slow)
    assert run.slow_first(slow) == "", "it was told just now"
    assert pool_run(3.0).slow_first(slow) == ""
    assert pool_run().slow_first([worker(1e9)]) == ""
