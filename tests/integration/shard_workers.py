"""A worker whose rows are easy to foresee and whose misfortunes are written down per shard."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from influray.protocols import ConfigError, StorageError
from influray.runtime.process import process_name
from influray.runtime.shards import Attempt, ShardOutOfMemory, ShardPool, ShardTask, WorkerInfo
from influray.store.artifact import Receipt, ShardStore

BUDGET = 64


class ScriptedWorker:
    """Commits row -> row squared. `script` maps a shard's key, or "ready", to what happens to it:

    kill: the process dies by SIGKILL; kill-once: the first time only; kill-others: each time but the first; raise: an error of ours; user: a ConfigError; storage: object storage does not answer;
    memory: batches above 16 do not fit; never-fits: nothing does; slow-once: the first one takes SLOW seconds; stop-once: the first process stops and is there;
    rows 4 7: the process dies when it computes one of these rows.
    """

    SLOW = 20.0

    def __init__(self, notes: str, script: Mapping[str, str], pace: float) -> None:
        self._notes = Path(notes)
        self._script = dict(script)
        self._pace = pace

    def ready(self) -> WorkerInfo:
        self._suffer("ready", Attempt())
        return WorkerInfo(process_name(), "cpu", BUDGET)

    def compute(self, task: ShardTask, attempt: Attempt) -> Receipt | None:
        with open(self._notes / f"{task.key}.attempts", "a") as file:
            file.write(f"{attempt.number} {os.getpid()}\n")
        store = ShardStore(task.folder)
        self._suffer(task.key, attempt)
        time.sleep(self._pace)
        first, stop = attempt.probe or (task.start, task.stop)
        rows = [row for row in range(first, stop) if row not in attempt.without]
        poison = self._script.get(task.key, "")
        if poison.startswith("rows") and set(rows) & set(map(int, poison.split()[1:])):
            os.kill(os.getpid(), signal.SIGKILL)
        if attempt.probe is not None:
            return None
        table = pa.table(
            {"row": pa.array(rows, pa.int64()), "square": pa.array([row * row for row in rows], pa.int64())}
        )
        budget = attempt.token_budget or BUDGET
        details = {"rows": len(rows), "token_budget": budget, "shrunk": attempt.shrunk, "worker": process_name()}
        return store.commit(task.key, table, details)

    def _suffer(self, key: str, attempt: Attempt) -> None:
        fate = self._script.get(key, "")
        if fate == "kill" or (fate.startswith("kill-") and self._first(key) == (fate == "kill-once")):
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate == "raise":
            raise RuntimeError(f"shard {key} is cursed")
        elif fate == "user":
            raise ConfigError(f"features.dimension: found {key!r}")
        elif fate == "storage":
            raise StorageError(f"s3://bucket/{key}: the storage failed")
        elif fate == "memory" and (attempt.token_budget or BUDGET) > 16:
            raise ShardOutOfMemory("CUDA out of memory", attempt.token_budget or BUDGET, divisible=True)
        elif fate == "never-fits":
            raise ShardOutOfMemory("CUDA out of memory", attempt.token_budget or BUDGET, divisible=False)
        elif fate == "stop-once" and self._first(key):
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fate == "slow-once" and self._first(key):
            time.sleep(self.SLOW)

    def _first(self, key: str) -> bool:
        try:
            (self._notes / f"{key}.first").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


def scripted_pool(
    notes: Path,
    size: int | Callable[[], int],
    script: Mapping[str, str] | None = None,
    pace: float = 0.0,
    cpus: float = 0.1,
    **options: Any,
) -> ShardPool:
    """A pool of scripted workers, which take next to nothing of the cluster."""
    actor = ray.remote(num_cpus=cpus, max_restarts=0, max_task_retries=0)(ScriptedWorker)
    notes.mkdir(parents=True, exist_ok=True)
    return ShardPool(lambda: actor.remote(str(notes), dict(script or {}), pace), size, **options)


def plan(folder: Path, count: int, rows: int = 3) -> list[ShardTask]:
    """`count` shards with keys key-00, key-01 ..."""
    return [ShardTask(f"key-{i:02}", "pool", 1, i * rows, (i + 1) * rows, str(folder)) for i in range(count)]


def attempts(notes: Path, key: str) -> int:
    path = notes / f"{key}.attempts"
    return len(path.read_text().splitlines()) if path.exists() else 0
