"""What a run costs beside its work: overhead of Ray, gain of a second worker, start-up, and a million rows.

    python jobs/benchmark_runtime.py [--rows 1000000] [--shard-seconds 20] [--rounds 3] [--only overhead startup rows]

overhead: the same shards by one Ray worker and by a plain loop in one process, interleaved; each gives the wall time
that its shards took beyond the CPU seconds of their work. two workers: the same shards by one and by two.
startup: from the start of a process to its first committed shard. rows: a pool of short records through data,
featurize (a featurizer that does nothing), score and select, each in a process of its own; `driver` is the CPU time of
the driving process a row, and peak its resident memory, mapped pages included.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
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
STAGES = ("data", "featurize", "score", "select")


def config(folder: Path, featurizer: str = "Noop", **changes: Any) -> dict[str, Any]:
    """Return the config of a world that `write_world` has written."""
    return {
        "run_dir": str(folder / "run"),
        "model": {"base": str(folder / "base")},
        "data": {"root": str(folder), "pool": "pool", "targets": {t: f"targets/{t}.jsonl" for t in TASKS}},
        "features": {"featurizer": f"noop_featurizer:{featurizer}"},
        "selectors": [{"name": "bids", "method": "bids", "budget": 0.01}],
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

    tree = config(folder, resources={"workers": workers, "cpus_per_worker": 0.5})
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
    from influray.selectors.output import select_and_write

    tree = parse_config(config(folder))
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
    with tempfile.TemporaryDirectory() as folder:
        if "rows" in args.only:
            many_rows(Path(folder), args.rows, args.workers, args.profile)


if __name__ == "__main__":
    main()
