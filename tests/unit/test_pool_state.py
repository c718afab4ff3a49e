"""Which workers a pool takes for hung: by others' shards, by fixed bounds where there are none, never while they wait."""

from __future__ import annotations

import time

import pytest

from influray.runtime.poison import Hunt
from influray.runtime.pool_state import (
    HUNG_FIRST_SECONDS,
    HUNG_FLOOR_SECONDS,
    HUNG_START_SECONDS,
    HUNG_TIMES,
    InHand,
    Item,
    PoolRun,
    Worker,
)
from influray.runtime.tasks import ShardTask, WorkerInfo


def pool_run(longest=0.0, starts_failed=0):
    run = PoolRun([], lambda *_: None, lambda *_: None)
    run.longest, run.starts_failed = longest, starts_failed
    return run


def worker(age, *, placed=True, up=True, tries=None):
    since = time.monotonic() - age
    shards = [] if tries is None else [InHand(shard(tries=tries), None, since)]
    info = WorkerInfo("host-1") if up else None
    return Worker(None, None, since, None if placed else object(), info, shards)


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


def computing(item, *writes):
    """A worker that writes some shards, and computes one unless that is None."""
    shards = [InHand(w, object(), 0.0, writing=True) for w in writes] + ([InHand(item, object(), 0.0)] if item else [])
    return Worker(None, None, 0.0, None, WorkerInfo("host-1"), shards)


def shard(**facts):
    return Item(ShardTask("key", "pool", 1, 0, 3, "folder"), **facts)


def test_one_shard_at_most_is_written_beside_one_that_is_computed():
    assert computing(None).takes(shard())
    assert computing(None, shard()).takes(shard())
    assert not computing(None, shard(), shard()).takes(shard()), "a third would be held in memory"
    assert not computing(shard()).takes(shard())
    assert not worker(0, up=False).takes(shard())


@pytest.mark.parametrize("facts", [{"tries": 1}, {"doubted": True}, {"hunt": Hunt(0, 3, ())}], ids=str)
def test_a_shard_that_may_kill_its_process_has_it_to_itself(facts):
    assert computing(None).takes(shard(**facts))
    assert not computing(None, shard()).takes(shard(**facts)), "it would take the other one with it"
    assert not computing(None, shard(**facts)).takes(shard()), "it is not committed yet"


def test_a_writing_that_hangs_is_overdue_though_the_next_shard_has_just_begun():
    run, now = pool_run(1.0), time.monotonic()
    shards = [InHand(shard(), None, now - 5, writing=True), InHand(shard(), None, now)]
    busy = Worker(None, None, now, None, WorkerInfo("host-1"), shards)
    assert run.overdue(busy) == ""
    shards[0].since -= HUNG_FLOOR_SECONDS
    assert "no answer after" in run.overdue(busy)
