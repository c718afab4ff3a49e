"""Workers whose rows are easy to foresee and whose misfortunes are written down per shard."""

from __future__ import annotations

import errno
import os
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray

from influray.protocols import ConfigError, StorageError
from influray.runtime.cluster import ResolvedResources
from influray.runtime.process import process_name
from influray.runtime.shards import WRITER, ShardPool
from influray.runtime.tasks import Attempt, Computed, ShardTask, WorkerInfo
from influray.store.artifact import Receipt, ShardStore

BUDGET = 64


class ScriptedWorker:
    """Commits row -> row squared. `script` maps a shard's key, or "ready", to what happens to it:

    kill: the process dies by SIGKILL; kill-once: the first time only; kill-others: each time but the first; raise: an error of ours; user: a ConfigError; storage: object storage does not answer;
    shrinks: it is made in batches of 16, since larger ones do not fit; stop-once: the first process stops and is there;
    rows 4 7: the process dies when it computes one of these rows;
    until KEY: it waits until the computing of that shard, by another one, has begun.
    """

    def __init__(self, notes: str, script: Mapping[str, str], pace: float, threads: int = 1) -> None:
        self._notes = Path(notes)
        self._script = dict(script)
        self._pace = pace

    def ready(self) -> WorkerInfo:
        self._suffer("ready", Attempt())
        return WorkerInfo(process_name(), "cpu", BUDGET)

    def compute(self, task: ShardTask, attempt: Attempt) -> Receipt | Computed | None:
        made = self._rows(task, attempt)
        return None if made is None else ShardStore(task.folder).commit(task.key, *made)

    def _rows(self, task: ShardTask, attempt: Attempt) -> tuple[pa.Table, dict[str, Any]] | None:
        with open(self._notes / f"{task.key}.attempts", "a") as file:
            file.write(f"{attempt.number} {os.getpid()}\n")
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
        shrunk = poison == "shrinks"
        budget = 16 if shrunk else attempt.token_budget or BUDGET
        details = {"rows": len(rows), "token_budget": budget, "shrunk": shrunk, "worker": process_name()}
        return table, details

    def _suffer(self, key: str, attempt: Attempt) -> None:
        self._meet(self._script.get(key, ""), key, attempt)

    def _meet(self, fate: str, key: str, attempt: Attempt) -> None:
        if fate == "kill" or (fate.startswith("kill-") and self._first(key) == (fate == "kill-once")):
            os.kill(os.getpid(), signal.SIGKILL)
        elif fate == "raise":
            raise RuntimeError(f"shard {key} is cursed")
        elif fate == "user":
            raise ConfigError(f"features.dimension: found {key!r}")
        elif fate == "storage":
            raise StorageError(f"s3://bucket/{key}: the storage failed")
        elif fate == "stop-once" and self._first(key):
            os.kill(os.getpid(), signal.SIGSTOP)
        elif fate.startswith("until "):
            self._await(fate.removeprefix("until "))

    def _await(self, key: str) -> None:
        """Wait until the computing of a shard has begun."""
        deadline = time.monotonic() + 120
        while not (self._notes / f"{key}.attempts").exists():
            assert time.monotonic() < deadline, f"{key} was not begun meanwhile"
            time.sleep(0.01)

    def _first(self, key: str) -> bool:
        try:
            (self._notes / f"{key}.first").touch(exist_ok=False)
        except FileExistsError:
            return False
        return True


class BehindWorker(ScriptedWorker):
    """A scripted worker that commits a shard while it computes the next one. `script` knows of writing, besides:

    write-FATE: as FATE, when it is written; write-full: the disk is full;
    write-until KEY: it is written when the computing of that shard has begun, and no sooner.
    """

    def __init__(self, notes: str, script: Mapping[str, str], pace: float, threads: int = 1) -> None:
        super().__init__(notes, script, pace)
        self._made: dict[str, tuple[str, tuple[pa.Table, dict[str, Any]]]] = {}

    def compute(self, task: ShardTask, attempt: Attempt) -> Receipt | Computed | None:
        committed = ShardStore(task.folder).receipt(task.key)
        if committed is not None:
            return committed
        with open(self._notes / "beside", "a") as file:
            file.write(f"{task.key} {' '.join(self._made)}\n")
        made = self._rows(task, attempt)
        if made is None:
            return None
        self._made[task.key] = task.folder, made
        return Computed()

    @ray.method(concurrency_group=WRITER)
    def commit(self, key: str) -> Receipt:
        folder, made = self._made[key]
        when, _, fate = self._script.get(key, "").partition("-")
        if when == "write":
            self._meet(fate, key, Attempt())
            if fate == "full":
                raise OSError(errno.ENOSPC, "no space left", folder)
        receipt = ShardStore(folder).commit(key, *made)
        del self._made[key]
        return receipt


@dataclass(frozen=True)
class Following(ResolvedResources):
    """Resources of a cluster that has room for as many workers as a function says."""

    size: Callable[[], int] = field(kw_only=True)

    def room(self, gpus: float) -> int:
        return self.size()


def scripted_pool(
    notes: Path,
    size: int | Callable[[], int],
    script: Mapping[str, str] | None = None,
    pace: float = 0.0,
    cpus: float = 0.1,
    behind: bool = False,
    max_attempts: int = 3,
    isolate: bool = False,
) -> ShardPool:
    """A pool of scripted workers, which take next to nothing of the cluster."""
    notes.mkdir(parents=True, exist_ok=True)
    shared = {"cpus_per_worker": cpus, "gpus_per_worker": 0.0, "threads_per_worker": 1, "training_workers": 1}
    shared |= {"max_attempts": max_attempts}
    resources: Any = (
        Following(1, **shared, follows=True, size=size) if callable(size) else ResolvedResources(size, **shared)
    )
    worker = BehindWorker if behind else ScriptedWorker
    return ShardPool(worker, (str(notes), dict(script or {}), pace), resources, lower="batches", isolate=isolate)


def plan(folder: Path, count: int, rows: int = 3) -> list[ShardTask]:
    """`count` shards with keys key-00, key-01 ..."""
    return [ShardTask(f"key-{i:02}", "pool", 1, i * rows, (i + 1) * rows, str(folder)) for i in range(count)]


def attempts(notes: Path, key: str) -> int:
    path = notes / f"{key}.attempts"
    return len(path.read_text().splitlines()) if path.exists() else 0
