"""What the scorers that carry exact scores over keep of them: correlation with the truth, and what LESS chooses.

    influray run EXACT.yaml                        # exact scores of the whole pool, such as by gradients
    influray score EXACT.yaml --run-dir CHEAP --set features.featurizer=representation ...
    python jobs/benchmark_propagation.py EXACT CHEAP [--rows 400 800] [--seed 0]

EXACT and CHEAP are run directories of one pool and the same targets. For each number of rows, drawn at random, every
scorer learns from their exact scores and the vectors of CHEAP; all other rows are the test. `held out` is the
correlation that a run would tell, from folds of the rows it learns from. Seconds are of one core.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import threadpoolctl
import torch

from influray.evaluation.rank_correlation import spearman
from influray.protocols import FeatureRows, Stores
from influray.runs import open_run
from influray.scorers.options import make_scorer
from influray.scorers.propagation import Propagating, folds, used_columns
from influray.selectors.api import select

NAMES = ("landmarks", "influence_model", "surrogate")
BUDGET = 0.05


def measure(exact: str, cheap: str, counts: list[int], seed: int) -> None:
    truth, other = open_run(exact), open_run(cheap)
    matrix = truth.attribution()
    vector_ND, target_TD = (other.datastore(split).features().astype(np.float64) for split in ("pool", "target"))
    score_NT = np.concatenate([block for _, block in matrix.blocks()])
    if len(score_NT) != len(vector_ND):
        raise SystemExit(f"{exact} has scores of {len(score_NT)} rows and {cheap} features of {len(vector_ND)}")
    rows = other.datastore("target").column("row")
    target = FeatureRows(rows, [""] * len(rows), [target_TD], [])
    whole = set(select(score_NT, matrix.groups, BUDGET, method="less").rows.tolist())
    print(f"{len(score_NT)} rows, {score_NT.shape[1]} targets; LESS chooses {len(whole)}\n")
    print("rows  scorer            correlation  held out  rows of LESS  seconds")
    for count in counts:
        learnt_N = np.random.default_rng(seed).permutation(len(score_NT))[:count]
        row_L, rest = np.sort(learnt_N), np.setdiff1d(np.arange(len(score_NT)), learnt_N)
        exact_LT, used_T = score_NT[row_L].astype(np.float64), used_columns(score_NT[row_L])
        for name in NAMES:
            scorer = make_scorer(name, Stores((1.0,), featurizer="representation"), {"exact": exact})
            assert isinstance(scorer, Propagating)
            start = time.process_time()
            state = scorer.learn(vector_ND[row_L], exact_LT, used_T, target)
            seconds = time.process_time() - start
            found_NT = score_NT.copy()
            found_NT[rest] = scorer.foretell(vector_ND[rest], state)
            right = spearman(score_NT[rest].astype(np.float64), found_NT[rest].astype(np.float64))[used_T].mean()
            held = np.mean([spearman(exact_LT[one], state["foretold"][one])[used_T].mean() for one in folds(count)])
            same = len(whole & set(select(found_NT, matrix.groups, BUDGET, method="less").rows.tolist())) / len(whole)
            print(f"{count:<5} {name:<17} {right:>11.2f} {held:>9.2f} {same:>13.2f} {seconds:>8.0f}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("exact")
    parser.add_argument("cheap")
    parser.add_argument("--rows", type=int, nargs="+", default=[400, 800])
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with threadpoolctl.threadpool_limits(1):
        measure(options.exact, options.cheap, options.rows, options.seed)


if __name__ == "__main__":
    main()
