"""The shard pool under every misfortune: each shard is committed exactly once, or its failure is told."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import ray

from influray.protocols import ConfigError, StorageError
from influray.runtime import pool_state, shards
from influray.runtime.process import prepare_process
from influray.runtime.tasks import Attempt, PoolError, PoolEvent, ShardTask, WorkerStartError
from influray.store.artifact import ShardStore, hash_file, map_table
from tests.integration.shard_workers import ScriptedWorker, attempts, plan, scripted_pool

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

REPOSITORY = Path(__file__).parents[2]


def digests(tasks: list[ShardTask]) -> list[str]:
    """The content of every shard, by its receipt and by its file."""
    found = []
    for task in tasks:
        receipt = ShardStore(task.folder).receipt(task.key)
        assert receipt is not None, f"{task.key} was not committed"
        assert hash_file(Path(task.folder) / receipt.file) == receipt.sha256
        found.append(receipt.sha256)
    return found


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> list[str]:
    """Digests of 12 shards made by one worker in peace."""
    folder = tmp_path_factory.mktemp("expected")
    tasks = plan(folder / "store", 12)
    with scripted_pool(folder / "notes", 1) as pool:
        pool.run(tasks)
    return digests(tasks)


@pytest.mark.parametrize("size", [2, 3])
def test_the_number_of_workers_does_not_show_in_the_bytes(tmp_path, expected, size):
    tasks = plan(tmp_path / "store", 12)
    seen = []
    with scripted_pool(tmp_path, size) as pool:
        report = pool.run(tasks, on_receipt=lambda task, receipt: seen.append((task.key, receipt.key)))
    assert [receipt.key for receipt in report.receipts] == [task.key for task in tasks]
    assert sorted(seen) == [(task.key, task.key) for task in tasks]
    assert digests(tasks) == expected
    assert sum(attempts(tmp_path, task.key) for task in tasks) == len(tasks)
    assert len(list((tmp_path / "store").glob("part-*"))) == 12


def test_a_killed_worker_is_replaced_and_its_shard_is_tried_again(tmp_path, expected):
    tasks = plan(tmp_path / "store", 12)
    events: list[PoolEvent] = []
    with scripted_pool(tmp_path, 2, {"key-04": "kill-once"}) as pool:
        report = pool.run(tasks, on_event=events.append)
    assert digests(tasks) == expected
    assert (report.workers_lost, report.retries) == (1, 1)
    assert attempts(tmp_path, "key-04") == 2
    assert [event.key for event in events if event.kind == "retry"] == ["key-04"]


@pytest.mark.parametrize(("fate", "reason"), [("kill", "worker lost"), ("raise", "key-02 is cursed")])
def test_a_poison_shard_is_given_up_and_all_others_are_committed(tmp_path, expected, fate, reason):
    tasks = plan(tmp_path / "store", 6)
    with scripted_pool(tmp_path, 2, {"key-02": fate}) as pool, pytest.raises(PoolError) as caught:
        pool.run(tasks)
    (failure,) = caught.value.report.failures
    assert failure.task == tasks[2]
    assert len(failure.reasons) == 3
    assert all(reason in text for text in failure.reasons)
    assert reason in str(caught.value)
    del tasks[2]
    assert digests(tasks) == [expected[i] for i in (0, 1, 3, 4, 5)]


@pytest.mark.parametrize("where", ["key-02", "ready"])
def test_a_storage_that_does_not_answer_in_any_attempt_is_told_as_what_it_is(tmp_path, where):
    tasks = plan(tmp_path / "store", 4)
    pool = scripted_pool(tmp_path, 1, {where: "storage"}, max_attempts=2)
    with pytest.raises(StorageError, match=f"bucket/{where}: the storage failed") as caught, pool:
        pool.run(tasks)
    assert type(caught.value) is StorageError
    assert attempts(tmp_path, "key-02") == (2 if where == "key-02" else 0)


def test_shards_that_failed_for_other_reasons_too_are_not_put_down_to_the_storage(tmp_path):
    pool = scripted_pool(tmp_path, 1, {"key-01": "storage", "key-02": "raise"}, max_attempts=1)
    with pytest.raises(PoolError, match="the storage failed"), pool:
        pool.run(plan(tmp_path / "store", 4))


def rows_of(task: ShardTask) -> list[int]:
    store = ShardStore(task.folder)
    receipt = store.receipt(task.key)
    assert receipt is not None
    return map_table(store.folder / receipt.file)["row"].to_pylist()


def test_rows_that_kill_their_process_are_left_out_of_their_shard_and_no_other_row_is(tmp_path):
    tasks = plan(tmp_path / "store", 3, rows=4)
    events: list[PoolEvent] = []
    with scripted_pool(tmp_path, 2, {"key-01": "rows 4 6"}, max_attempts=1, isolate=True) as pool:
        report = pool.run(tasks, on_event=events.append)
    assert [rows_of(task) for task in tasks] == [[0, 1, 2, 3], [5, 7], [8, 9, 10, 11]]
    assert report.failures == ()
    found = [event.text for event in events if event.kind == "isolated"]
    assert [text.split("row ")[1].split()[0] for text in found] == ["4", "6"]
    assert len(list((tmp_path / "store").glob("part-*"))) == 3, "a probe left a file"


def test_a_shard_that_dies_whatever_its_rows_fails_and_says_that_it_is_not_a_row(tmp_path):
    tasks = plan(tmp_path / "store", 2)
    pool = scripted_pool(tmp_path, 1, {"key-01": "kill"}, max_attempts=1, isolate=True)
    with pytest.raises(PoolError, match="die whatever row they compute"), pool:
        pool.run(tasks)
    assert rows_of(tasks[0]) == [0, 1, 2]


def test_a_pool_follows_the_size_it_is_told_while_it_runs(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(shards, "SIZE_SECONDS", 0.0)
    tasks = plan(tmp_path / "store", 12)
    committed: list[str] = []
    size, script = lambda: 1 if len(committed) < 3 else 2, {"key-03": "until key-04"}  # which the second worker begins
    with scripted_pool(tmp_path, size, script) as pool:
        report = pool.run(tasks, on_receipt=lambda task, receipt: committed.append(receipt.details["worker"]))
    assert len(set(committed[:3])) == 1
    assert len({receipt.details["worker"] for receipt in report.receipts}) > 1, "the second worker did nothing"
    assert digests(tasks) == expected


def test_of_two_workers_on_one_shard_one_commits_and_both_return_its_receipt(tmp_path, expected):
    (task,) = plan(tmp_path / "store", 1)
    actor = ray.remote(num_cpus=0.1)(ScriptedWorker)
    racers = [actor.remote(str(tmp_path), {}, 0.05) for _ in range(2)]
    ray.get([racer.ready.remote() for racer in racers])
    for _ in range(5):
        one, other = ray.get([racer.compute.remote(task, Attempt()) for racer in racers])
        assert one == other
        assert digests([task]) == expected[:1]
        assert [path.name for path in (tmp_path / "store").glob("*.arrow")] == [one.file]
        ShardStore(task.folder).sweep(set())
    for racer in racers:
        ray.kill(racer)


@pytest.mark.parametrize("where", ["key-01", "key-00"])
def test_a_lone_worker_that_hangs_is_ended_and_its_place_is_free_for_another(tmp_path, expected, monkeypatch, where):
    for bound in ("HUNG_FLOOR_SECONDS", "HUNG_FIRST_SECONDS"):
        monkeypatch.setattr(pool_state, bound, 3.0)
    monkeypatch.setattr(pool_state, "HUNG_TIMES", 2.0)
    tasks = plan(tmp_path / "store", 3)
    whole = ray.cluster_resources()["CPU"] - 0.5  # there is no room for two
    with scripted_pool(tmp_path, 1, {where: "stop-once"}, cpus=whole) as pool:
        report = pool.run(tasks)
    assert digests(tasks) == expected[:3]
    assert (report.workers_lost, report.retries) == (1, 1)


def test_a_worker_that_waits_for_room_is_not_taken_for_hung(tmp_path, expected, monkeypatch):
    monkeypatch.setattr(pool_state, "HUNG_START_SECONDS", 1.0)
    tasks = plan(tmp_path / "store", 6)
    events: list[PoolEvent] = []
    whole = ray.cluster_resources()["CPU"] - 0.5
    with scripted_pool(tmp_path, 2, cpus=whole, pace=0.5) as pool:
        report = pool.run(tasks, on_event=events.append)
    assert digests(tasks) == expected[:6]
    assert (report.workers_lost, [event.kind for event in events]) == (0, ["started"])


@pytest.mark.parametrize("where", ["key-03", "ready"])
def test_an_error_of_the_user_reaches_the_driver_unchanged_and_at_once(tmp_path, where):
    with scripted_pool(tmp_path, 2, {where: "user"}, pace=0.05) as pool, pytest.raises(ConfigError) as caught:
        pool.run(plan(tmp_path / "store", 8))
    assert type(caught.value) is ConfigError
    assert str(caught.value) == f"features.dimension: found {where!r}"
    assert attempts(tmp_path, "key-03") == (1 if where == "key-03" else 0)
    assert attempts(tmp_path, "key-07") == 0, "the rest was begun all the same"


def test_of_a_shard_that_was_made_in_smaller_batches_people_hear(tmp_path, expected):
    tasks, events = plan(tmp_path / "store", 4), []
    with scripted_pool(tmp_path, 1, {"key-01": "shrinks"}) as pool:
        report = pool.run(tasks, on_event=events.append)
    assert digests(tasks) == expected[:4]
    assert [event.key for event in events if event.kind == "shrunk"] == ["key-01"]
    assert (report.token_budget, report.retries, report.workers_lost) == (64, 0, 0)


def test_workers_that_die_at_the_start_end_the_run(tmp_path):
    pool = scripted_pool(tmp_path, 1, {"ready": "kill"}, max_attempts=2)
    with pytest.raises(WorkerStartError, match="2 workers died while starting"), pool:
        pool.run(plan(tmp_path / "store", 2))


def test_a_place_where_no_worker_comes_up_is_given_up_and_the_others_go_on(tmp_path, expected):
    tasks = plan(tmp_path / "store", 6)
    with scripted_pool(tmp_path, 2, {"ready": "kill-others"}, pace=0.8, max_attempts=2) as pool:
        report = pool.run(tasks)
    assert digests(tasks) == expected[:6]
    assert (report.workers_lost, report.retries) == (2, 0)


def test_a_pool_serves_several_runs_with_the_same_workers(tmp_path):
    with scripted_pool(tmp_path, 1) as pool:
        names = {pool.run(plan(tmp_path / part, 2)).receipts[0].details["worker"] for part in ("a", "b")}
    assert len(names) == 1


def look_at_the_process(logs: str) -> tuple[set[int], str, list[str]]:
    """The threads of every library that has some, the GPUs that CUDA would see, and the log."""
    import threadpoolctl

    name = prepare_process(logs, 3)
    logging.getLogger("influray.test").info("heard")
    threads = {pool["num_threads"] for pool in threadpoolctl.threadpool_info()}
    return threads, os.environ["CUDA_VISIBLE_DEVICES"], Path(logs, f"worker-{name}.log").read_text().splitlines()


def test_a_process_keeps_to_its_threads_and_sees_no_gpu_that_it_did_not_ask_for(tmp_path):
    # Ray's own rule would be as many threads as whole CPUs, so 1.
    threads, gpus, log = ray.get(ray.remote(num_cpus=0.1)(look_at_the_process).remote(str(tmp_path)))
    assert threads == {3}
    assert gpus == ""
    assert [line.rpartition(" ")[2] for line in log] == ["threads", "heard"]


DRIVER = """
import sys
from pathlib import Path
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect
from influray.store.artifact import ShardStore
from tests.integration.shard_workers import plan, scripted_pool

folder, address = Path(sys.argv[1]), sys.argv[2]
tasks = [t for t in plan(folder / "store", 12) if ShardStore(t.folder).valid_receipt(t.key) is None]
with connect(ResourcesConfig(), address), scripted_pool(folder / sys.argv[3], 2, pace=0.4) as pool:
    try:
        pool.run(tasks, on_receipt=lambda task, receipt: print(task.key, flush=True))
    except KeyboardInterrupt:
        print("interrupted", flush=True)
        sys.exit(130)
"""


def driver(folder: Path, address: str, notes: str) -> subprocess.Popen[str]:
    """A driver of its own that has committed some shards and is at work on more."""
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), address, notes], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    assert [process.stdout.readline()[:3] for _ in range(3)] == ["key"] * 3
    return process


def test_a_killed_driver_leaves_what_is_committed_and_the_next_one_does_the_rest(tmp_path, ray_cluster, expected):
    process = driver(tmp_path, ray_cluster.address, "first")
    process.kill()
    process.wait()
    tasks = plan(tmp_path / "store", 12)
    done = {task.key for task in tasks if ShardStore(task.folder).receipt(task.key) is not None}
    assert 3 <= len(done) < 12
    left = [task for task in tasks if task.key not in done]
    with scripted_pool(tmp_path / "second", 2) as pool:
        pool.run(left)
    assert digests(tasks) == expected
    assert not any(attempts(tmp_path / "second", key) for key in done)
    ShardStore(tmp_path / "store").freeze([task.key for task in tasks], {})
    assert len(list((tmp_path / "store").glob("*part-*"))) == 12, "an orphan left a file"


def test_sigterm_lets_shards_in_flight_commit_and_begins_no_more(tmp_path, ray_cluster):
    process = driver(tmp_path, ray_cluster.address, "first")
    process.send_signal(signal.SIGTERM)
    output, _ = process.communicate(timeout=30)
    assert process.returncode == 130
    assert output.splitlines()[-1] == "interrupted"
    tasks = plan(tmp_path / "store", 12)
    begun = {task.key for task in tasks if attempts(tmp_path / "first", task.key)}
    committed = {task.key for task in tasks if ShardStore(task.folder).receipt(task.key) is not None}
    assert begun == committed
    assert len(begun) < 12
