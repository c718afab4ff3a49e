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
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from influray.config_validate import LEAST_SUBSETS
from influray.evaluation.rank_correlation import (
    bootstrap_counts,
    percentile_interval,
    resampled_spearman,
    spearman,
)

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
    samples: np.ndarray  # `mean` in each bootstrap sample, float64 [R]


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
    sampled_R = sampled_RG.mean(axis=1)
    return Agreement(
        rho_T,
        dict(zip(names, by_task_G.tolist(), strict=True)),
        {name: percentile_interval(sampled_RG[:, g]) for g, name in enumerate(names)},
        float(by_task_G.mean()),
        percentile_interval(sampled_R),
        sampled_R,
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


def predicted_effects(
    blocks: Iterable[tuple[np.ndarray, np.ndarray]], member_MN: np.ndarray, targets: int
) -> np.ndarray:
    """Return the sum of the scores of each subset's rows, float64 [M, T].

    `blocks` are (positions in N, scores [B, T]), each row at most once; `member_MN` says which rows a subset holds. A
    row that has no finite score for a target, or is in no block, counts as the mean of those that have one; where none
    has, the sum is NaN.
    """
    weight_MN = np.vstack([member_MN, np.ones(member_MN.shape[1], bool)]).astype(np.float64)  # the last: of all rows
    total_MT, known_MT = np.zeros((2, len(weight_MN), targets))
    for position_B, score_BT in blocks:
        finite_BT = np.isfinite(score_BT)
        total_MT += weight_MN[:, position_B] @ np.where(finite_BT, score_BT, 0.0).astype(np.float64)
        known_MT += weight_MN[:, position_B] @ finite_BT.astype(np.float64)
    mean_T = np.full(targets, np.nan)
    np.divide(total_MT[-1], known_MT[-1], out=mean_T, where=known_MT[-1] > 0)
    missing_MT = weight_MN.sum(axis=1)[:, None] - known_MT
    return (total_MT + np.where(missing_MT > 0, missing_MT * mean_T, 0.0))[:-1]
