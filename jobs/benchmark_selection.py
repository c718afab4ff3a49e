"""How long BIDS takes: influray's selector on a matrix in memory, and the plain loop for the ratio.

    python jobs/benchmark_selection.py [--rows 288000] [--columns 350] [--budget 0.15] [--loop-rows 4000]

The defaults are the size of the paper (arXiv 2501.12147). The plain loop would take hours there: it is run on fewer
rows, where both must choose the same, and its time at full size is extrapolated by budget x rows x columns.
"""

from __future__ import annotations

import argparse
import os
import platform
import resource
import time

import numpy as np

from influray.protocols import SelectionProblem
from influray.selectors.api import resolve_budget, run_selector
from influray.store.attribution import ArrayAttribution

TASKS = 7
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


def main() -> None:
    parser = argparse.ArgumentParser(description="How long BIDS takes, beside the plain loop.")
    parser.add_argument("--rows", type=int, default=288_000)
    parser.add_argument("--columns", type=int, default=350)
    parser.add_argument("--budget", type=float, default=0.15, help="fraction of the rows")
    parser.add_argument("--loop-rows", type=int, default=4_000, help="rows on which the plain loop is run")
    args = parser.parse_args()
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
