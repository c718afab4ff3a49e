"""What constraints.near_duplicates adds to the time of BIDS: features on a disk, scores in memory.

    python jobs/benchmark_near_duplicates.py FOLDER [--rows 288000] [--columns 350] [--budget 0.15] [--dimension 8192]

The defaults are the size of the paper (arXiv 2501.12147) and of one checkpoint; a tenth of the rows are copies of
others. FOLDER is made and removed again; it takes rows x dimension x 2 bytes (4.7 GB).
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import shutil
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from influray.protocols import Limits, SelectionProblem
from influray.selectors.api import resolve_budget, run_selector
from influray.store.artifact import ShardStore
from influray.store.attribution import ArrayAttribution
from influray.store.encodings import as_column
from influray.store.features import JoinedRows

PART_ROWS = 4096
TASKS = 7


def write_features(folder: Path, original_N: np.ndarray, dimension: int, shared: float) -> None:
    """Write unit rows that have cosines of about `shared` with each other; row i is that of number original_N[i]."""
    store, keys = ShardStore(folder), []
    common_D = np.random.default_rng(0).standard_normal(dimension, np.float32)
    for start in range(0, len(original_N), PART_ROWS):
        number_B = original_N[start : start + PART_ROWS]
        rows = [np.random.default_rng(int(n)).standard_normal(dimension, np.float32) for n in number_B]
        block_BD = np.sqrt(1 - shared) * np.stack(rows) + np.sqrt(shared) * common_D
        block_BD /= np.linalg.norm(block_BD, axis=1, keepdims=True)
        table = pa.table(
            {"row": np.arange(start, start + len(number_B)), "feature": as_column(block_BD.astype(np.float16))}
        )
        keys.append(f"{start:09d}")
        store.commit(keys[-1], table, {})
    store.freeze(keys, {"dimension": dimension, "fingerprint": "benchmark"})


def timed(problem: SelectionProblem) -> tuple[np.ndarray, float, float]:
    wall, processor = time.perf_counter(), time.process_time()
    rows = run_selector(problem, "bids", {}).rows
    return rows, time.perf_counter() - wall, time.process_time() - processor


def main() -> None:
    parser = argparse.ArgumentParser(description="What constraints.near_duplicates adds to the time of BIDS.")
    parser.add_argument("folder", type=Path, help="a new folder for the features")
    parser.add_argument("--rows", type=int, default=288_000)
    parser.add_argument("--columns", type=int, default=350)
    parser.add_argument("--budget", type=float, default=0.15, help="fraction of the rows")
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--shared", type=float, default=0.2, help="cosine of rows that are no copies")
    parser.add_argument("--thresholds", type=float, nargs="+", default=[0.99, 0.98])
    args = parser.parse_args()
    if args.folder.exists():
        parser.error(f"{args.folder} is there; name a new folder")
    rng = np.random.default_rng(1)
    original_N = np.arange(args.rows)
    copies = rng.choice(args.rows, args.rows // 10, replace=False)
    original_N[copies] = rng.integers(0, args.rows, len(copies))
    score_NT = rng.standard_normal((args.rows, args.columns), np.float32)[original_N]
    task_T = np.arange(args.columns) * TASKS // args.columns
    score_NT += 2 * rng.standard_normal((args.rows, TASKS), np.float32)[original_N][:, task_T]
    groups = tuple(f"task {j}" for j in task_T)
    budget = resolve_budget(args.budget, args.rows)
    print(f"{platform.machine()}, {os.cpu_count()} cores, NumPy {np.__version__}, load {os.getloadavg()[0]:.1f}")
    print(f"{budget:,} of {args.rows:,} rows x {args.columns} columns; features of {args.dimension}")
    try:
        write_features(args.folder, original_N, args.dimension, args.shared)
        features = JoinedRows([args.folder], [1.0])
        plain = SelectionProblem(ArrayAttribution(score_NT), groups, budget)
        rows, wall, processor = timed(plain)
        print(f"{'BIDS':>12} {wall:8.2f} s {processor:8.2f} CPU s   {len(rows) - len(set(original_N[rows]))} copies")
        for threshold in args.thresholds:
            limits = Limits(near_duplicates=threshold)
            problem = SelectionProblem(ArrayAttribution(score_NT), groups, budget, limits=limits, features=features)
            rows, mine, cpu = timed(problem)
            left = len(rows) - len(set(original_N[rows]))
            print(
                f"{threshold:>12} {mine:8.2f} s {cpu:8.2f} CPU s   {left} copies   "
                f"{mine / wall:.1f} times the time, {cpu / processor:.1f} times the CPU time"
            )
    finally:
        shutil.rmtree(args.folder, ignore_errors=True)
    print(f"peak memory {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20:.2f} GiB")


if __name__ == "__main__":
    main()
