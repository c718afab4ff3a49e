"""What is wrong with a pool: rows that harm, rows that look mislabelled, and targets that nothing helps.

Pure functions of the standardised influence, of losses and norms, and of each row's nearest rows.

Shape suffixes: N pool rows, T target columns, G tasks, k neighbours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

HARM = -1.0  # standard deviations: a row whose mean influence on a task lies below it is one of its worst sixth or so
MOST = 0.5  # share of tasks
OUTLIER = 3.0  # times the median absolute deviation, made a standard deviation
TO_STD = 1.4826  # of a normal distribution, from its median absolute deviation


@dataclass(frozen=True)
class Harmful:
    """A row that harms most tasks: shares of tasks on which its mean standardised influence is below HARM and 0."""

    row: int
    below: float
    negative: float
    mean: float  # over tasks


@dataclass(frozen=True)
class Suspect:
    """A row that looks mislabelled; `score` in [0, 1] is the mean of the three ranks that say so."""

    row: int
    score: float
    self_influence: float
    loss: float
    agreement: float  # mean cosine with the rows nearest to its line, with sign


@dataclass(frozen=True)
class Unhelped:
    """A target whose best pool row helps it little: its standardised influence and its plain one."""

    id: str
    task: str
    top: float
    influence: float
    reason: str  # "nothing helps" or "helped far less than the others"


def harmful_rows(row_N: np.ndarray, score_NG: np.ndarray) -> list[Harmful]:
    """Return the rows whose standardised influence is below -1 on more than half of the tasks, the worst first.

    `score_NG` is the mean over a task's targets of the standardised influence; tasks that are NaN do not count. By
    descending share below -1, then ascending mean, then row.
    """
    used_NG = score_NG[:, ~np.isnan(score_NG).all(axis=0)]
    if not used_NG.size:
        return []
    below_N = (used_NG < HARM).mean(axis=1)
    mean_N = used_NG.mean(axis=1)
    negative_N = (used_NG < 0).mean(axis=1)
    order_N = np.lexsort((row_N, mean_N, -below_N))
    return [
        Harmful(int(row_N[i]), float(below_N[i]), float(negative_N[i]), float(mean_N[i]))
        for i in order_N[: int((below_N > MOST).sum())]
    ]


def self_influence(norm_KN: Sequence[np.ndarray], weights: Sequence[float]) -> np.ndarray:
    """Return sum_k w_k |g_ki|^2, float64 [N]: how much a step on a row would lower its own loss.

    Mislabelled rows stand high in it: nothing else in the pool teaches them. Source: TracIn, arXiv 2002.08484,
    section 4.1, with plain gradients; w_k are the weights of the matrix.
    """
    parts = [weight * np.asarray(norm_N, np.float64) ** 2 for norm_N, weight in zip(norm_KN, weights, strict=True)]
    return np.sum(parts, axis=0)


def agreement(best_Nk: np.ndarray, worst_Nk: np.ndarray, count: int) -> np.ndarray:
    """Return the mean of the `count` cosines of largest magnitude of each row, with their signs, float64 [N].

    `best_Nk` and `worst_Nk` are its highest and lowest cosines with other rows, NaN where there are fewer. A row that
    pulls against the rows on its own line has a low one: much like them in what it is about, contrary in what it says.
    """
    both = np.concatenate([best_Nk, worst_Nk], axis=1).astype(np.float64)
    size = np.where(np.isnan(both), -1.0, np.abs(both))
    order = np.argsort(-size, axis=1, kind="stable")[:, :count]
    return np.nan_to_num(np.nanmean(np.take_along_axis(both, order, axis=1), axis=1))


def mislabelled_rows(
    row_N: np.ndarray, self_N: np.ndarray, loss_N: np.ndarray, agreement_N: np.ndarray
) -> list[Suspect]:
    """Return all rows, the likeliest mislabelled first: high self-influence, high loss, neighbours that disagree.

    The score is the mean of the three ranks in [0, 1]; equals stand by row.
    """
    score_N = (ranks(self_N) + ranks(loss_N) + ranks(-agreement_N)) / 3
    return [
        Suspect(int(row_N[i]), *(float(column[i]) for column in (score_N, self_N, loss_N, agreement_N)))
        for i in np.lexsort((row_N, -score_N))
    ]


def ranks(value_N: np.ndarray) -> np.ndarray:
    """Return the share of the other values that are lower, equals counting half, float64 [N]; 0.5 of a single one."""
    _, place_N, count = np.unique(value_N, return_inverse=True, return_counts=True)
    middle = np.cumsum(count) - (count + 1) / 2
    return middle[place_N] / (len(value_N) - 1) if len(value_N) > 1 else np.full(len(value_N), 0.5)


def unhelped_targets(
    ids: Sequence[str], tasks: Sequence[str], top_T: np.ndarray, mean_T: np.ndarray, std_T: np.ndarray
) -> list[Unhelped]:
    """Return the targets that nothing in the pool helps, the least helped first.

    `top_T` is the largest influence on each. One is listed where that is 0 or less, or where it is, in standard
    deviations of its column, 3 (robust) deviations below the median over targets.
    """
    usable = np.isfinite(std_T) & (std_T > 0)
    z_T = np.where(usable, (top_T - mean_T) / np.where(usable, std_T, 1.0), np.nan)
    if not usable.any():
        return []
    middle = float(np.median(z_T[usable]))
    spread = TO_STD * float(np.median(np.abs(z_T[usable] - middle)))
    found = []
    for j in np.flatnonzero(usable).tolist():
        nothing = top_T[j] <= 0
        if nothing or z_T[j] < middle - OUTLIER * spread:
            reason = "nothing helps" if nothing else "helped far less than the others"
            found.append(Unhelped(ids[j], tasks[j], float(z_T[j]), float(top_T[j]), reason))
    return sorted(found, key=lambda one: (one.reason != "nothing helps", one.top, one.id))


def plain(found: Sequence[Any]) -> list[dict[str, Any]]:
    """Return dataclasses as JSON objects."""
    return [dict(one.__dict__) for one in found]
