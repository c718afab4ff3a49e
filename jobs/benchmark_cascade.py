"""What of a full run's selections a cascade keeps: from a run with exact features and one with cheap features.

    python jobs/benchmark_cascade.py --full RUN... --cheap RUN...

The n-th full run and the n-th cheap run are of the same pool and targets. Rows pass by the cheap scores, and each
method then chooses from the exact matrix cut down to them, as `influray run` with a cascade does. Means over the runs,
with their standard errors.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from statistics import fmean, stdev

import numpy as np

import influray
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory

METHODS = ("bids", "less")
PASSING = ("bids", "less", "rr", "instance_max", "quota", "random")


def matrix_of(attribution: Attribution) -> tuple[np.ndarray, np.ndarray]:
    """Return (rows [N], matrix [N, T])."""
    rows, blocks = zip(*attribution.blocks(), strict=True)
    return np.concatenate(rows), np.concatenate(blocks)


def kept(full: str, cheap: str, shares: Sequence[float], budget: float) -> dict[tuple[float, str, str], float]:
    """Return (share, passing method, method) -> the share of the method's rows that it still chooses."""
    exact, other = (Attribution(RunDirectory(run).attribution) for run in (full, cheap))
    (row_N, matrix_NT), (other_N, other_NT) = matrix_of(exact), matrix_of(other)
    groups = exact.groups
    if not np.array_equal(row_N, other_N) or groups != other.groups:
        raise SystemExit(f"{cheap}: its rows or columns are not those of {full}")
    count = int(budget * len(row_N))
    wanted = {method: influray.select(matrix_NT, groups, count, method=method).rows for method in METHODS}
    found = {}
    for share in shares:
        for by in PASSING:
            passed = np.sort(influray.select(other_NT, groups, share, method=by).rows)
            for method in METHODS:
                rows = passed[influray.select(matrix_NT[passed], groups, count, method=method).rows]
                found[share, by, method] = len(np.intersect1d(rows, wanted[method])) / count
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", nargs="+", required=True)
    parser.add_argument("--cheap", nargs="+", required=True)
    parser.add_argument("--shares", nargs="+", type=float, default=[0.25, 0.5])
    parser.add_argument("--budget", type=float, default=0.05)
    given = parser.parse_args()
    pairs = zip(given.full, given.cheap, strict=True)
    runs = [kept(full, cheap, given.shares, given.budget) for full, cheap in pairs]
    print("| share | who passes by | " + " | ".join(f"{method} kept" for method in METHODS) + " |")
    print("|" + "---|" * (2 + len(METHODS)))
    for share in given.shares:
        for by in PASSING:
            cells = [_mean([run[share, by, method] for run in runs]) for method in METHODS]
            print(f"| {share:g} | {by} | {' | '.join(cells)} |")


def _mean(values: Sequence[float]) -> str:
    error = f" +- {stdev(values) / math.sqrt(len(values)):.2f}" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{error}"


if __name__ == "__main__":
    main()
