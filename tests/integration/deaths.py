"""Deaths of Ray's processes, on a machine whose memory looks full when a worker wishes so. Run as a script by its test.

It runs in a mount namespace of its own, where a file stands for /proc/meminfo: Ray's own monitor reads it and kills.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from tests.cluster.local_cluster import ended

os.environ["RAY_memory_monitor_refresh_ms"] = "100"  # noqa: SIM112 - as Ray spells it
FOLDER = Path(sys.argv[1])
MEMINFO = FOLDER / "meminfo"
TOTAL = 16 * 2**20  # KiB


def memory(free: float) -> None:
    """Let the machine have this fraction of its memory free."""
    lines = {"MemTotal": TOTAL, "MemFree": int(TOTAL * free), "MemAvailable": int(TOTAL * free)}
    lines |= dict.fromkeys(("Buffers", "Cached", "SwapTotal", "SwapFree", "Shmem", "SReclaimable"), 0)
    with open(MEMINFO, "r+" if MEMINFO.exists() else "w") as file:  # the same inode: it is mounted
        file.write("".join(f"{name + ':':<16}{value:>12} kB\n" for name, value in lines.items()))


def starve(times: int, name: str) -> None:
    """Make Ray kill this process for memory, the first `times` times that this is called under a name."""
    for number in range(times):
        try:
            (FOLDER / f"{name}-{number}").touch(exist_ok=False)
        except FileExistsError:
            continue
        (FOLDER / "hungry").write_text(str(os.getpid()))
        memory(0.01)
        time.sleep(600)


def relief() -> None:
    """Free the memory again whenever the process that took it is gone."""
    while True:
        time.sleep(0.05)
        with contextlib.suppress(OSError, ValueError):
            pid = int((FOLDER / "hungry").read_text())
            if ended(pid):
                (FOLDER / "hungry").unlink()
                memory(0.9)


def pool_scenarios() -> dict[str, Any]:
    from influray.runtime.retries import TooLittleMemory
    from influray.runtime.shards import ShardPool
    from influray.runtime.tasks import ShardTask, WorkerInfo
    from influray.store.artifact import Receipt

    class Hungry:
        def __init__(self, times: int, name: str, threads: int) -> None:
            self.times, self.name = times, name

        def ready(self) -> WorkerInfo:
            return WorkerInfo(str(os.getpid()))

        def compute(self, task: ShardTask, attempt: Any) -> Receipt:
            if task.start == 2:
                starve(self.times, self.name)
            time.sleep(0.1)
            return Receipt(task.key, "", "", 0, 0, {})

    resources: Any = SimpleNamespace(
        cpus_per_worker=0.5, threads_per_worker=1, follows=False, workers=2, max_attempts=2
    )
    found: dict[str, Any] = {}
    for name, times in (("pool", 1), ("hopeless", 99)):
        tasks = [ShardTask(f"{name}-{i}", "pool", 0, i, i + 1, "") for i in range(6)]
        events: list[Any] = []
        with ShardPool(Hungry, (times, name), resources, lower="features.token_budget (now 64)") as pool:
            try:
                report = pool.run(tasks, on_event=events.append)
            except TooLittleMemory as error:
                found[name] = str(error)
            else:
                told = [event.side_by_side for event in events if event.kind == "memory"]
                found[name] = [len(report.receipts), report.memory_kills >= 1, told[-1]]
    return found


def other_scenarios() -> dict[str, Any]:
    import influray.ask.spread_index as index
    import influray.runtime.columns as columns
    import influray.runtime.training as training

    def train(job: Any, *_: Any) -> dict[str, Any]:
        starve(1 if job.out == "0" else 0, "training")
        return {"job": job.out}

    def read(*given: Any) -> Any:
        starve(1 if given[-1][0].start == 0 else 0, "columns")
        return [call.start for call in given[-1]]

    def build(token: str, address: str, threads: int, shard: Any, trained: str) -> Any:
        starve(1 if shard.file == "1" else 0, "index")
        return int(shard.file)

    found: dict[str, Any] = {}
    training.train_one, columns.read_ranges, index.build_one = train, read, build
    resources: Any = SimpleNamespace(cpus_per_worker=0.5, threads_per_worker=1, max_attempts=2)
    jobs: Any = [
        SimpleNamespace(out=str(i), kind="tune", section=SimpleNamespace(device_batch_size=1)) for i in range(3)
    ]
    events: list[Any] = []
    board = training.JobBoard(lambda *_: None)
    made = training._by_tasks(jobs, resources, training.Layout(1, 2, 0.0), board, events.append)
    told = [event.side_by_side for event in events if event.kind == "memory"]
    found["training"] = [[one["job"] for one in made], told[-1]]

    workers = columns.ColumnWorkers(2, 0.5, "")
    calls: Any = [SimpleNamespace(start=i, stop=i + 1) for i in range(6)]
    found["columns"] = [
        list(workers.map(SimpleNamespace(folder=FOLDER, shape=(6, 1)), calls)),  # pyright: ignore[reportArgumentType]  it is not read
        workers.tasks.beside.kills >= 1,
    ]

    spread = index.SpreadIndex(SimpleNamespace(address=""), 2, 0.5)  # pyright: ignore[reportArgumentType]
    shards: Any = [SimpleNamespace(file=str(i)) for i in range(4)]
    found["index"] = spread.build(FOLDER, shards)
    return found


def end_of_cluster(name: str) -> None:
    """Kill a process of Ray's while a run waits, and print when that was."""
    import ray

    from influray.runtime.watch import _vital, end

    @ray.remote(num_cpus=0.5)
    class Sleeper:
        def sleep(self) -> None:
            time.sleep(600)

    def kill() -> None:
        time.sleep(1)
        print(json.dumps({"killed": time.time()}), flush=True)
        os.kill(_vital()[name].pid, signal.SIGKILL)

    actor: Any = Sleeper.remote()
    threading.Thread(target=kill).start()
    try:
        ray.get(actor.sleep.remote())
    finally:
        end(actor)


def main() -> None:
    from influray.config import ResourcesConfig
    from influray.interrupts import interrupt_on_sigterm
    from influray.protocols import RunStopped
    from influray.runtime.cluster import connect

    memory(0.9)
    subprocess.run(["mount", "--bind", str(MEMINFO), "/proc/meminfo"], check=True)
    threading.Thread(target=relief, daemon=True).start()
    try:
        with interrupt_on_sigterm(), connect(ResourcesConfig()):
            found = pool_scenarios() | other_scenarios() if "memory" in sys.argv else {}
            print(json.dumps(found), flush=True)
            end_of_cluster(sys.argv[-1])
    except RunStopped as error:
        sys.exit(f"influray: {error}")


if __name__ == "__main__":
    main()
