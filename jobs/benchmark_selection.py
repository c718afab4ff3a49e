"""How long BIDS takes: influray's selector on a matrix in memory, and the plain loop for the ratio; or on a disk.

    python jobs/benchmark_selection.py [--rows 288000] [--columns 350] [--budget 0.15] [--loop-rows 4000]
    python jobs/benchmark_selection.py --disk FOLDER --rows 10000000 --columns 512 --budget 0.01 [--keep]

The defaults are the size of the paper (arXiv 2501.12147). The plain loop would take hours there: it is run on fewer
rows, where both must choose the same, and its time at full size is extrapolated by budget x rows x columns.

On a disk a matrix of tasks with much in common is written first, as `influray score` leaves one, moments included.
Then its parts are read plainly, and BIDS is run, which checks every part as it reads it; each in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import platform
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from influray.protocols import SelectionProblem
from influray.selectors.api import resolve_budget, run_selector
from influray.store.artifact import ShardStore
from influray.store.attribution import ArrayAttribution, Attribution, attribution_table, commit_attribution
from influray.store.ranges import RANGE_ROWS, Threads

TASKS = 7
PART_ROWS = 4 * RANGE_ROWS
KINDS = ("independent", "correlated", "one direction")


def scores(kind: str, rows: int, columns: int, seed: int = 0) -> np.ndarray:
    """Return float32 scores: of independent columns, of tasks with much in common, or nearly the same everywhere."""
    rng = np.random.default_rng(seed)
    score_NT = rng.standard_normal((rows, columns), dtype=np.float32)
    task_T = np.arange(columns) * TASKS // columns
    if kind == "correlated":
        for task in range(TASKS):
            score_NT[:, task_T == task] += 2 * rng.standard_normal((rows, 1), dtype=np.float32)
    elif kind == "one direction":
        score_NT *= 0.05
        score_NT += rng.standard_normal((rows, 1), dtype=np.float32)
    return score_NT


def plain_loop(score_NT: np.ndarray, budget: int) -> np.ndarray:
    """Return the rows that the paper's algorithm chooses, the whole matrix looked at for every pick."""
    stats = ArrayAttribution(score_NT).stats
    z_NT = (score_NT.astype(np.float64) - stats.mean_T) / stats.std_T
    utility_NT = np.empty_like(z_NT)
    free_N = np.ones(len(z_NT), bool)
    sum_T, chosen = np.zeros(z_NT.shape[1]), []
    for step in range(budget):
        np.subtract(z_NT, sum_T / max(step, 1), out=utility_NT)
        chosen.append(int(np.where(free_N, utility_NT.max(axis=1), -np.inf).argmax()))
        free_N[chosen[-1]] = False
        sum_T += z_NT[chosen[-1]]
    return np.array(chosen)


def timed(call, *args):
    wall, processor = time.perf_counter(), time.process_time()
    result = call(*args)
    return result, time.perf_counter() - wall, time.process_time() - processor


def bids(score_NT: np.ndarray, budget: int) -> np.ndarray:
    groups = tuple(f"task {j * TASKS // score_NT.shape[1]}" for j in range(score_NT.shape[1]))
    return run_selector(SelectionProblem(ArrayAttribution(score_NT), groups, budget), "bids", {}).rows


def write_matrix(folder: Path, rows: int, columns: int) -> None:
    """Write parts of a matrix, the same for the same size; its targets with their moments come last."""
    rng = np.random.default_rng(0)
    base_BT = rng.standard_normal((PART_ROWS, columns), dtype=np.float32)
    task_T = np.arange(columns) * TASKS // columns
    part_BT, store, keys = np.empty_like(base_BT), ShardStore(folder), []
    for start in range(0, rows, PART_ROWS):
        count = min(PART_ROWS, rows - start)
        # Drawing 5e9 numbers would take longer than all the rest: other lines of one draw, and other tasks' shares.
        score_BT = np.take(base_BT, rng.permutation(PART_ROWS)[:count], axis=0, out=part_BT[:count])
        for low, high in itertools.pairwise(np.searchsorted(task_T, range(TASKS + 1))):
            score_BT[:, low:high] += rng.standard_normal((count, 1), dtype=np.float32)
        keys.append(f"{start:012d}")
        store.commit(keys[-1], attribution_table(np.arange(start, start + count), score_BT), {})
    tasks = [f"task {j}" for j in task_T]
    ids = [f"target {j}" for j in range(columns)]
    commit_attribution(store, keys, {"fingerprint": "benchmark"}, range(columns), ids, tasks)


def plain_read(folder: Path) -> None:
    buffer = memoryview(bytearray(2**22))
    for path in sorted(folder.glob("part-*.arrow")):
        with open(path, "rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


class CountingThreads(Threads):
    """Counts the passes over the matrix."""

    passes = 0

    def map(self, source, calls):
        self.passes += source.shape[0] > RANGE_ROWS
        return super().map(source, calls)


def select_from_disk(folder: Path, budget: int) -> int:
    mapper = CountingThreads()
    source = Attribution(folder, mapper)
    problem = SelectionProblem(source, source.groups, budget)
    assert len(run_selector(problem, "bids", {}).rows) == budget
    return mapper.passes


def on_disk(folder: Path, rows: int, columns: int, budget: int, keep: bool) -> None:
    """Print what each stage takes; peak memory is VmHWM: anonymous memory and what is mapped of files."""
    folder.mkdir(parents=True, exist_ok=True)
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"BIDS, {rows:,} x {columns} float32 on disk, {4e-9 * rows * columns:.1f} GB, {budget:,} chosen\n")
    print(f"{'':>10} {'passes':>6} {'seconds':>8} {'CPU s':>7} {'MB/s':>6} {'peak GiB':>9}")
    try:
        for stage in ("write", "read", "select"):
            command = [sys.executable, __file__, "--disk", str(folder), "--stage", stage]
            command += ["--rows", str(rows), "--columns", str(columns), "--budget", str(budget)]
            answer = subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout
            found = json.loads(answer)
            rate = found["passes"] * 4e-6 * rows * columns / found["wall"]
            print(
                f"{stage:>10} {found['passes']:6} {found['wall']:8.1f} {found['cpu']:7.1f} {rate:6.0f} "
                f"{found['peak'] / 2**30:9.2f}",
                flush=True,
            )
    finally:
        if not keep:
            shutil.rmtree(folder, ignore_errors=True)


def one_stage(stage: str, folder: Path, rows: int, columns: int, budget: int) -> None:
    calls = {
        "write": (write_matrix, folder, rows, columns),
        "read": (plain_read, folder),
        "select": (select_from_disk, folder, budget),
    }
    passes, wall, processor = timed(*calls[stage])
    status = Path("/proc/self/status").read_text().splitlines()
    peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM")) * 1024
    print(json.dumps({"passes": passes or 1, "wall": wall, "cpu": processor, "peak": peak}))


def main() -> None:
    parser = argparse.ArgumentParser(description="How long BIDS takes, beside the plain loop.")
    parser.add_argument("--rows", type=int, default=288_000)
    parser.add_argument("--columns", type=int, default=350)
    parser.add_argument("--budget", type=float, default=0.15, help="fraction of the rows")
    parser.add_argument("--loop-rows", type=int, default=4_000, help="rows on which the plain loop is run")
    parser.add_argument("--disk", type=Path, help="an empty or new folder: measure a matrix on this disk instead")
    parser.add_argument("--keep", action="store_true", help="leave what was written there")
    parser.add_argument("--stage", choices=("write", "read", "select"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.stage:
        one_stage(args.stage, args.disk, args.rows, args.columns, int(args.budget))
        return
    if args.disk:
        if args.disk.exists() and any(args.disk.iterdir()):
            parser.error(f"--disk: {args.disk} is not empty")
        budget = resolve_budget(int(args.budget) if args.budget > 1 else args.budget, args.rows)
        on_disk(args.disk, args.rows, args.columns, budget, args.keep)
        return
    budget, loop_budget = (resolve_budget(args.budget, rows) for rows in (args.rows, args.loop_rows))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}, NumPy {np.__version__}")
    print(f"BIDS, {args.rows:,} x {args.columns} float32 in memory, {budget:,} chosen; moments included\n")
    print(f"{'scores':>14} {'seconds':>8} {'CPU s':>7} {f'at {args.loop_rows}':>9} {'plain loop':>11} {'ratio':>7}")
    for kind in KINDS:
        score_NT = scores(kind, args.rows, args.columns)
        _, wall, processor = timed(bids, score_NT, budget)
        score_NT = scores(kind, args.loop_rows, args.columns)
        ours, short, _ = timed(bids, score_NT, loop_budget)
        theirs, loop, _ = timed(plain_loop, score_NT, loop_budget)
        if not np.array_equal(ours, theirs):
            raise SystemExit(f"{kind}: the selection differs from the plain loop's")
        full = loop * (budget / loop_budget) * (args.rows / args.loop_rows)
        print(
            f"{kind:>14} {wall:8.2f} {processor:7.2f} {short:8.3f}s {loop:10.2f}s {loop / short:6.0f}x"
            f"   at full size the loop would take {full / 3600:.1f} h (extrapolated), {full / wall:,.0f}x"
        )
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\npeak memory {peak:.2f} GiB, of it {4 * args.rows * args.columns / 2**30:.2f} GiB for the matrix")


if __name__ == "__main__":
    main()
