"""Shards that are written while the next ones are computed: nothing is lost, and nobody pays for another's misfortune."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from influray.protocols import ConfigError, StorageError
from influray.runtime.tasks import PoolError, ShardTask
from influray.store.artifact import Receipt, ShardStore, hash_file
from tests.integration.shard_workers import attempts, plan, scripted_pool

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]


def committed(tasks: list[ShardTask]) -> dict[str, str]:
    """The content of the shards that have a receipt, by key."""
    found = {}
    for task in tasks:
        receipt = ShardStore(task.folder).receipt(task.key)
        if receipt is not None:
            found[task.key] = receipt.sha256
            assert hash_file(Path(task.folder) / receipt.file) == receipt.sha256
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> dict[str, str]:
    """Contents of 12 shards, each written before the next one was begun."""
    folder = tmp_path_factory.mktemp("expected")
    tasks = plan(folder / "store", 12)
    with scripted_pool(folder / "notes", 1) as pool:
        pool.run(tasks)
    return committed(tasks)


def only(expected: dict[str, str], tasks: list[ShardTask]) -> dict[str, str]:
    return {task.key: expected[task.key] for task in tasks}


@pytest.mark.parametrize("size", [1, 2])
def test_shards_written_behind_have_the_bytes_of_others(tmp_path, expected, size):
    tasks, seen = plan(tmp_path / "store", 12), []
    with scripted_pool(tmp_path, size, behind=True) as pool:
        report = pool.run(tasks, on_receipt=lambda task, receipt: seen.append(receipt.key))
    assert committed(tasks) == expected
    assert [receipt.key for receipt in report.receipts] == sorted(seen) == [task.key for task in tasks]
    assert (report.retries, report.workers_lost, len(list((tmp_path / "store").glob("part-*")))) == (0, 0, 12)


def test_a_shard_is_written_while_the_next_one_is_computed_and_one_at_most(tmp_path, expected):
    tasks = plan(tmp_path / "store", 6)
    until = {f"key-{i:02}": f"write-until key-{i + 1:02}" for i in range(5)}
    with scripted_pool(tmp_path, 1, until, behind=True) as pool:
        pool.run(tasks)
    assert committed(tasks) == only(expected, tasks)
    beside = [line.split() for line in (tmp_path / "beside").read_text().splitlines()]
    assert beside == [["key-00"], *([f"key-{i:02}", f"key-{i - 1:02}"] for i in range(1, 6))]


@pytest.mark.parametrize("size", [1, 2])
def test_a_process_that_dies_writing_is_replaced_and_its_shards_are_made_again(tmp_path, expected, size):
    tasks = plan(tmp_path / "store", 12)
    with scripted_pool(tmp_path, size, {"key-04": "write-kill-once"}, behind=True) as pool:
        report = pool.run(tasks)
    assert committed(tasks) == expected
    assert report.workers_lost == 1
    assert attempts(tmp_path, "key-04") == 2


@pytest.mark.parametrize("fate", ["kill", "write-kill"])
def test_what_always_kills_its_process_takes_no_other_shard_with_it(tmp_path, expected, fate):
    tasks, events = plan(tmp_path / "store", 6), []
    script = {"key-02": fate, "key-01": "write-until key-02"}  # which is beside it when it dies
    with scripted_pool(tmp_path, 1, script, behind=True) as pool, pytest.raises(PoolError) as caught:
        pool.run(tasks, on_event=events.append)
    (failure,) = caught.value.report.failures
    assert (failure.task.key, len(failure.reasons)) == ("key-02", 3)
    assert all("worker lost" in reason for reason in failure.reasons)
    assert attempts(tmp_path, "key-02") == 4, "once beside another shard, when it was not clear which of them it was"
    assert committed(tasks) == only(expected, [task for task in tasks if task.key != "key-02"])
    innocent = [event.key for event in events if event.kind == "retry" and event.key != "key-02"]
    assert len(innocent) == 1


def test_one_attempt_is_enough_for_shards_beside_one_that_kills_its_process(tmp_path, expected):
    tasks = plan(tmp_path / "store", 6)
    script = {"key-02": "kill", "key-01": "write-until key-02"}
    pool = scripted_pool(tmp_path, 1, script, behind=True, max_attempts=1)
    with pytest.raises(PoolError) as caught, pool:
        pool.run(tasks)
    assert [failure.task.key for failure in caught.value.report.failures] == ["key-02"]
    assert committed(tasks) == only(expected, [task for task in tasks if task.key != "key-02"])


def test_rows_that_kill_their_process_are_found_beside_a_shard_that_is_written(tmp_path, expected):
    tasks = plan(tmp_path / "store", 6)
    script = {"key-03": "rows 10", "key-02": "write-until key-03"}
    with scripted_pool(tmp_path, 1, script, behind=True, max_attempts=2, isolate=True) as pool:
        report = pool.run(tasks)
    assert {receipt.key: receipt.rows for receipt in report.receipts} == {
        task.key: 2 if task.key == "key-03" else 3 for task in tasks
    }
    assert committed(tasks).items() >= only(expected, [task for task in tasks if task.key != "key-03"]).items()


@pytest.mark.parametrize(("fate", "error"), [("raise", PoolError), ("storage", StorageError)])
def test_a_shard_that_cannot_be_written_is_tried_again_by_the_same_worker(tmp_path, expected, fate, error):
    tasks, events = plan(tmp_path / "store", 6), []
    with scripted_pool(tmp_path, 1, {"key-02": f"write-{fate}"}, behind=True) as pool, pytest.raises(error) as caught:
        pool.run(tasks, on_event=events.append)
    assert type(caught.value) is error
    assert committed(tasks) == only(expected, [task for task in tasks if task.key != "key-02"])
    assert attempts(tmp_path, "key-02") == 3
    assert [event.kind for event in events if event.kind in ("lost", "started")] == ["started"]


def test_an_exception_of_one_shard_is_not_put_down_to_the_one_that_is_written(tmp_path, expected):
    tasks = plan(tmp_path / "store", 4)
    script = {"key-02": "raise", "key-01": "write-until key-02"}
    with scripted_pool(tmp_path, 1, script, behind=True, max_attempts=1) as pool, pytest.raises(PoolError) as caught:
        pool.run(tasks)
    assert [failure.task.key for failure in caught.value.report.failures] == ["key-02"]
    assert committed(tasks) == only(expected, [task for task in tasks if task.key != "key-02"])


def test_a_full_disk_while_a_shard_is_written_ends_the_run_and_says_so(tmp_path):
    tasks = plan(tmp_path / "store", 6)
    with (
        scripted_pool(tmp_path, 1, {"key-02": "write-full"}, behind=True) as pool,
        pytest.raises(ConfigError, match="no space left"),
    ):
        pool.run(tasks)
    assert set(committed(tasks)) >= {"key-00", "key-01"}


def test_what_is_computed_is_still_written_when_an_error_ends_the_run(tmp_path, expected):
    tasks = plan(tmp_path / "store", 6)
    script = {"key-02": "user", "key-01": "write-until key-02"}
    with scripted_pool(tmp_path, 1, script, behind=True) as pool, pytest.raises(ConfigError, match="key-02"):
        pool.run(tasks)
    assert committed(tasks) == only(expected, tasks[:2])


def test_an_interrupt_lets_what_is_computed_be_written_and_begins_no_more(tmp_path, expected):
    tasks = plan(tmp_path / "store", 12)

    seen: list[str] = []

    def interrupt(task: ShardTask, receipt: Receipt) -> None:
        seen.append(receipt.key)
        if len(seen) == 1:
            raise KeyboardInterrupt

    with scripted_pool(tmp_path, 2, behind=True, pace=0.3) as pool:
        with pytest.raises(KeyboardInterrupt):
            pool.run(tasks, on_receipt=interrupt)
        begun = [task for task in tasks if attempts(tmp_path, task.key)]
        assert committed(tasks) == only(expected, begun)
        assert sorted(seen) == [task.key for task in begun]
        assert len(begun) < 6
        pool.run([task for task in tasks if task not in begun])
    assert committed(tasks) == expected


@pytest.mark.parametrize("seed", range(2))
def test_whatever_dies_where_every_shard_is_committed_with_its_bytes(tmp_path, expected, seed):
    tasks, rng = plan(tmp_path / "store", 12), random.Random(seed)
    fates = ["kill-once", "write-kill-once", *([""] * 5)]
    script = {task.key: rng.choice(fates) for task in tasks}
    with scripted_pool(tmp_path, 2, script, behind=True, pace=0.02) as pool:
        report = pool.run(tasks)
    assert committed(tasks) == expected
    assert report.failures == ()
    assert report.workers_lost == sum("kill" in fate for fate in script.values())
