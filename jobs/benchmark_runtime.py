"""What a run costs beside its work: overhead of Ray, gain of a second worker, start-up, and a million rows.

    python jobs/benchmark_runtime.py [--rows 1000000] [--shard-seconds 20] [--rounds 3] [--only overhead startup rows]

overhead: the same shards, of a fixed number of sums, by one worker and by a plain loop; and the gap between two shards
of a worker, which depends neither on what a shard takes nor on who else uses the machine as much as a ratio does.
workers: two against one. startup: a whole process. rows: a pool of short records through data, featurize with a
featurizer that does nothing, score and select, each in a process of its own with Ray and its libraries up; `driver` is
the CPU time of the driving process, `choose` that of the actor that selects; peak is resident memory, maps included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

TARGETS = 8  # of each of four tasks
TASKS = ("sums", "facts", "code", "words")
PARTS = ("overhead", "workers", "startup", "rows")
SELECTORS = [{"name": "bids", "method": "bids", "budget": 0.01}]
STAGES = ("data", "featurize", "score", "select")


def config(folder: Path, featurizer: str = "Noop", **changes: Any) -> dict[str, Any]:
    """Return the config of a world that `write_world` has written, whose featurizers this process may import."""
    from influray.plugins import permit

    permit(["noop_featurizer:Noop", "noop_featurizer:Spin"])
    return {
        "run_dir": str(folder / "run"),
        "model": {"base": str(folder / "base")},
        "data": {"root": str(folder), "pool": "pool", "targets": {t: f"targets/{t}.jsonl" for t in TASKS}},
        "features": {"featurizer": f"noop_featurizer:{featurizer}"},
        "selectors": [{"name": "bids", "method": "bids", "budget": 1.0}],
        **changes,
    }


def write_world(folder: Path, rows: int) -> None:
    """Write a pool of short records in files of 250,000, targets, and the miniature's tokenizer."""
    import shutil

    import influray.miniature

    base = Path(influray.miniature.__file__).parent / "base"
    shutil.copytree(base, folder / "base")
    (folder / "pool").mkdir()
    (folder / "targets").mkdir()
    for start in range(0, rows, 250_000):
        with open(folder / "pool" / f"{start:09d}.jsonl", "w") as file:
            for i in range(start, min(start + 250_000, rows)):
                file.write(_record(f"row-{i}", f"source-{i % 7}", i))
    for number, task in enumerate(TASKS):
        lines = [_record(f"{task}-{i}", task, 10**9 + 100 * number + i) for i in range(TARGETS)]
        (folder / "targets" / f"{task}.jsonl").write_text("".join(lines))


def _record(identity: str, source: str, i: int) -> str:
    turns = [{"role": "user", "content": f"Add {i} and {i % 13}."}, {"role": "assistant", "content": f"{i + i % 13}"}]
    return json.dumps({"id": identity, "source": source, "messages": turns}) + "\n"


def stage(name: str, folder: Path, workers: int) -> dict[str, float]:
    """Carry out one step in this process, and say what the process spent on it and how large it was."""
    import influray
    from influray.config import parse_config
    from influray.model.loading import load_tokenizer
    from influray.runtime.cluster import connect

    tree = config(folder, resources={"workers": workers, "cpus_per_worker": 0.5}, selectors=SELECTORS)
    with connect(parse_config(tree).resources):
        load_tokenizer(parse_config(tree).model)  # with its libraries: that and Ray are the start-up, measured apart
        wall, processor = time.perf_counter(), time.process_time()
        influray.run(tree, until=name)
        return {
            "wall": time.perf_counter() - wall,
            "cpu": time.process_time() - processor,
            "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
        }


def choose(folder: Path) -> dict[str, float]:
    """Carry out the selection in this process, as the driving actor does it, and say what it took."""
    from influray.config import parse_config
    from influray.runtime.selecting import select_and_write

    tree = parse_config(config(folder, selectors=SELECTORS))
    wall, processor = time.perf_counter(), time.process_time()
    select_and_write(tree.run_dir, tree.selectors[0].model_dump(mode="json"), "benchmark")
    return {
        "wall": time.perf_counter() - wall,
        "cpu": time.process_time() - processor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20,
    }


def many_rows(folder: Path, rows: int, workers: int, profile: str) -> None:
    write_world(folder, rows)
    print(f"{rows:,} rows of {os.path.getsize(folder / 'pool' / '000000000.jsonl') // min(rows, 250_000)} bytes")
    print(f"{'':>16} {'seconds':>8} {'driver CPU s':>13} {'us a row':>9} {'peak GB':>8}")
    for name in (*STAGES, "choose"):
        found = in_process(name, folder, workers=workers, profile=profile)
        each = 1e6 * found["cpu"] / rows
        print(f"{name:>16} {found['wall']:8.1f} {found['cpu']:13.1f} {each:9.2f} {found['peak']:8.2f}", flush=True)


def overhead(folder: Path, seconds: float, rounds: int) -> None:
    """Print what a shard takes beside its work: the gap between two shards of one worker, and of a plain loop."""
    from influray.config import parse_config
    from influray.runtime.cluster import connect

    shards = 4
    write_world(folder, shards)
    tree = spinning(folder, seconds)
    with connect(parse_config(tree).resources):
        import influray

        run = influray.run(tree, until="data")
        print(f"{shards} shards of {seconds:g} CPU seconds, one worker, interleaved with a plain loop")
        print(f"{'':>16} {'plain s':>8} {'Ray s':>8} {'ratio':>6} {'gap of Ray, ms a shard':>24}")
        ratios, gaps = [], []
        for number in range(rounds):
            plain = plain_loop(tree, run.directory, shards)
            wall, found = pooled(tree, run.directory, shards, workers=1)
            gaps += found
            ratios.append(wall / plain)
            print(f"{number:>16} {plain:8.2f} {wall:8.2f} {wall / plain:6.3f} {1e3 * statistics.median(found):24.1f}")
        gap = statistics.median(gaps)
        print(f"{'median':>16} {'':>17} {statistics.median(ratios):6.3f} {1e3 * gap:24.1f}")
        print(f"of a shard of a minute: {gap / 60:.3%}\n", flush=True)


def two_workers(folder: Path, seconds: float, rounds: int) -> None:
    """Print how many times faster two workers are than one on the same shards, from the first shard to the last."""
    import influray
    from influray.config import parse_config
    from influray.runtime.cluster import connect

    shards = 8
    write_world(folder, shards)
    tree = spinning(folder, seconds)
    with connect(parse_config(tree).resources):
        run = influray.run(tree, until="data")
        print(f"{shards} shards of {seconds:g} CPU seconds\n{'':>16} {'one s':>8} {'two s':>8} {'times':>6}")
        gains = []
        for number in range(rounds):
            one, two = (pooled(tree, run.directory, shards, workers)[0] for workers in (1, 2))
            gains.append(one / two)
            print(f"{number:>16} {one:8.2f} {two:8.2f} {gains[-1]:6.2f}")
        print(f"{'median':>16} {'':>17} {statistics.median(gains):6.2f}\n", flush=True)


def spinning(folder: Path, seconds: float) -> dict[str, Any]:
    """Return the config of shards, a row each, that take so many CPU seconds."""
    from noop_featurizer import spin

    rounds = max(1, int(seconds / min(spin(2000) / 2000 for _ in range(3))))
    features = {"featurizer": "noop_featurizer:Spin", "options": {"rounds": rounds}, "rows_per_shard": 1}
    return config(folder, features=features)


def plain_loop(tree: dict[str, Any], directory: Any, shards: int) -> float:
    """Compute and commit the shards here, without Ray, and return the seconds."""
    from noop_featurizer import Spin

    from influray.data.catalogue import Catalogue
    from influray.store.artifact import ShardStore
    from influray.store.datastore import feature_table

    catalogue = Catalogue(directory.data("pool"))
    store = ShardStore(directory.path / "plain")
    featurizer = Spin(**tree["features"]["options"])
    began = time.perf_counter()
    for row in range(shards):
        block = featurizer.compute(catalogue.texts(row, row + 1))
        store.commit(f"{row}-{began}", feature_table([block], featurizer.dimension), {})
    return time.perf_counter() - began


def pooled(tree: dict[str, Any], directory: Any, shards: int, workers: int) -> tuple[float, list[float]]:
    """Return the seconds from the first shard handed out to the last taken in, and the gaps between shards.

    A gap is the time between two shards taken in from one worker, less what the worker says it computed and wrote.
    """
    from influray.config import parse_config
    from influray.runtime.cluster import ResolvedResources
    from influray.runtime.tasks import ShardTask
    from influray.runtime.workers import featurize

    asked, began, taken = str(time.time()), [], []
    tasks = [
        ShardTask(f"{row}-{asked}", "pool", 1, row, row + 1, str(directory.path / "pooled")) for row in range(shards)
    ]
    plain = parse_config(tree).model_dump(mode="json")
    featurize(
        plain,
        directory.path,
        tasks,
        ResolvedResources(workers, 0.5, 0.0, 1, 1, 3),
        on_event=lambda event: began.append(time.perf_counter()) if event.kind == "started" else None,
        on_receipt=lambda task, receipt: taken.append((time.perf_counter(), receipt.details)),
    )
    gaps, last = [], dict.fromkeys({details["worker"] for _, details in taken}, 0.0)
    for when, details in taken:
        if last[details["worker"]]:
            gaps.append(when - last[details["worker"]] - details["seconds"])
        last[details["worker"]] = when
    return taken[-1][0] - began[workers - 1], gaps


def startup(folder: Path, rounds: int) -> None:
    """Print what `influray featurize` takes for two rows that need no work: to the first shard, and to its end."""
    write_world(folder, 2)
    tree = config(folder)
    code = "import json, sys, influray; influray.run(json.loads(sys.argv[1]), until='featurize')"
    print(f"a run of two rows\n{'':>16} {'s to the first shard':>21} {'to the end':>11} {'CPU s of its process':>21}")
    for number in range(rounds):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        began = time.time()
        fresh = {**tree, "run_dir": str(folder / f"run-{number}")}
        environment = {**os.environ, "PYTHONPATH": f"{Path(__file__).parent}:{os.environ.get('PYTHONPATH', '')}"}
        subprocess.run([sys.executable, "-c", code, json.dumps(fresh)], check=True, env=environment)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        ended = time.time()
        first = min(path.stat().st_mtime for path in Path(fresh["run_dir"], "features").rglob("*.arrow"))
        label = "warm" if number else "cold"
        print(f"{label:>16} {first - began:21.2f} {ended - began:11.2f} {spent:21.2f}", flush=True)
    print()


def in_process(name: str, folder: Path, **options: Any) -> dict[str, float]:
    """Return what `name` of this file gives in a process of its own."""
    command = [sys.executable, __file__, "--stage", name, "--folder", str(folder)]
    for option, value in options.items():
        command += [f"--{option}", str(value)] if value else []
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
    return json.loads(answer.splitlines()[-1])


def one_stage(args: argparse.Namespace) -> None:
    def call() -> dict[str, float]:
        return choose(args.folder) if args.stage == "choose" else stage(args.stage, args.folder, args.workers)

    if not args.profile:
        print(json.dumps(call()))
        return
    import cProfile
    import pstats

    profiler = cProfile.Profile()
    found = profiler.runcall(call)
    with open(f"{args.profile}-{args.stage}.txt", "w") as file:
        pstats.Stats(profiler, stream=file).sort_stats("cumtime").print_stats(60)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description="What a run costs beside its work.")
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shard-seconds", type=float, default=20.0, help="CPU seconds of a shard, about")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--profile", default="", help="write profiles of the rows' stages to PROFILE-STAGE.txt")
    parser.add_argument("--stage", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        one_stage(args)
        return
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    for part in args.only:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            if part == "overhead":
                overhead(folder, args.shard_seconds, args.rounds)
            elif part == "workers":
                two_workers(folder, args.shard_seconds / 4, args.rounds)
            elif part == "startup":
                startup(folder, args.rounds)
            else:
                many_rows(folder, args.rows, args.workers, args.profile)


if __name__ == "__main__":
    main()
