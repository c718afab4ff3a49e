"""The linear datamodelling score: does the sum of the scores of a subset foretell what training on it does?

For M random subsets of the pool the model is trained on each; the score of a target is Spearman's correlation, over
the subsets, of what was measured with the sum of the subset's scores for the target. Park et al., TRAK, arXiv
2303.14186, definition 2.3, after Ilyas et al., arXiv 2202.00622. Here the measured effect is minus the mean answer
loss of the target, the mean over tuning seeds, so that larger is better for both.

Shape suffixes: M subsets, N candidate rows, T targets, S seeds, R bootstrap samples.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from influray.evaluation.rank_correlation import (
    bootstrap_counts,
    percentile_interval,
    resampled_spearman,
    spearman,
)

LEAST_SUBSETS = 8  # below it a percentile interval says nothing: there are hardly any different samples in the tails
SAMPLES = 1000  # bootstrap samples of an interval
SPLITS = 32  # ways to halve the seeds that are looked at


@dataclass(frozen=True)
class Agreement:
    """How two orders of the subsets agree: per target, per task and over the tasks, each in [-1, 1].

    `interval` is of `mean` at 95 %, `task_intervals` of each task's: over the draw of subsets.
    """

    by_target: np.ndarray  # float64 [T]
    tasks: dict[str, float]  # the mean over a task's targets, tasks in the order of their first target
    task_intervals: dict[str, tuple[float, float]]
    mean: float  # over the tasks
    interval: tuple[float, float]


def lds(
    predicted_MT: np.ndarray, measured_MT: np.ndarray, tasks: Sequence[str], seed: int = 0, samples: int = SAMPLES
) -> Agreement:
    """Return the score of predictions: `predicted_MT[m, t]` is the sum of the scores of subset m's rows for target t.

    Tasks count alike, whatever their number of targets. The interval is a percentile bootstrap over subsets, drawn by
    `seed`: the same samples for every scorer of the same subsets, so that scorers can be compared by pairs.

    Raises:
        ValueError: fewer than LEAST_SUBSETS subsets.
    """
    if len(predicted_MT) < LEAST_SUBSETS:
        raise ValueError(f"{len(predicted_MT)} subsets are too few for an interval; {LEAST_SUBSETS} are enough")
    rho_T = spearman(predicted_MT, measured_MT)
    sampled_RT = resampled_spearman(predicted_MT, measured_MT, bootstrap_counts(len(predicted_MT), samples, seed))
    names = list(dict.fromkeys(tasks))
    member_GT = np.array([[task == name for task in tasks] for name in names], bool)
    share_GT = member_GT / member_GT.sum(axis=1, keepdims=True)
    by_task_G, sampled_RG = share_GT @ rho_T, sampled_RT @ share_GT.T
    return Agreement(
        rho_T,
        dict(zip(names, by_task_G.tolist(), strict=True)),
        {name: percentile_interval(sampled_RG[:, g]) for g, name in enumerate(names)},
        float(by_task_G.mean()),
        percentile_interval(sampled_RG.mean(axis=1)),
    )


def seed_agreement(measured_SMT: np.ndarray) -> np.ndarray | None:
    """Return the mean over ways to halve the seeds of Spearman's rho between the effects of the halves, [T].

    That is what two measurements of half the seeds each agree in: no scorer is to be blamed for the rest. None where
    there is one seed. Of an odd number of seeds the halves differ by one.
    """
    seeds = len(measured_SMT)
    if seeds < 2:
        return None
    halves = list(itertools.islice(itertools.combinations(range(seeds), seeds // 2), SPLITS))
    found = []
    for half in halves:
        rest = [s for s in range(seeds) if s not in half]
        found.append(spearman(measured_SMT[list(half)].mean(axis=0), measured_SMT[rest].mean(axis=0)))
    return np.mean(found, axis=0)


def ceiling(agreement: float) -> float:
    """Return what a scorer that knew the expected effects would reach, from the agreement of halves of the seeds.

    The reliability of all seeds is 2 r / (1 + r) (Spearman 1910, Brown 1910), and a measurement of that reliability
    correlates with what it measures by its root. For ranks an approximation. 0 where the halves do not agree.
    """
    return math.sqrt(2 * agreement / (1 + agreement)) if agreement > 0 else 0.0


def predicted_effects(score_NT: np.ndarray, subsets: Sequence[np.ndarray]) -> np.ndarray:
    """Return the sum of the scores of each subset's rows, float64 [M, T]; subsets are positions in `score_NT`.

    A row that has no finite score for a target counts as the mean of those that have; where none has, the sum is NaN.
    """
    exact_NT = np.asarray(score_NT, np.float64)
    known_NT = np.isfinite(exact_NT)
    if not known_NT.all():
        count_T = known_NT.sum(axis=0)
        total_T = np.where(known_NT, exact_NT, 0.0).sum(axis=0)
        mean_T = np.where(count_T > 0, total_T / np.maximum(count_T, 1), np.nan)
        exact_NT = np.where(known_NT, exact_NT, mean_T)
    return np.stack([exact_NT[positions].sum(axis=0) for positions in subsets])
