"""What sets two groups of records apart: the difference of their means, item by item, with its interval.

Shape suffixes: F records of the first group, P of the second, n items.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from influray.evaluation.paired_effect import student_95


@dataclass(frozen=True)
class Contrast:
    """The mean of the first group less that of the second, float64 [n], and how far its 95 % interval reaches."""

    value_n: np.ndarray
    half_n: np.ndarray  # NaN where a group has a single record


def contrast(first_Fn: np.ndarray, second_Pn: np.ndarray) -> Contrast:
    """Return the contrast of two groups of records. Without a second group the first's own mean stands for it.

    The interval is Welch's: spreads of both groups by themselves, degrees of freedom by Satterthwaite, rounded down.
    Source: Welch 1947.

    Raises:
        ValueError: the first group is empty.
    """
    first_Fn, second_Pn = np.asarray(first_Fn, np.float64), np.asarray(second_Pn, np.float64)
    if not len(first_Fn):
        raise ValueError("a contrast needs a record in its first group")
    groups = [first_Fn, second_Pn] if len(second_Pn) else [first_Fn]
    value_n = first_Fn.mean(axis=0) - (second_Pn.mean(axis=0) if len(second_Pn) else 0.0)
    if min(map(len, groups)) < 2:
        return Contrast(value_n, np.full(value_n.shape, np.nan))
    error_gn = np.stack([group.var(axis=0, ddof=1) / len(group) for group in groups])
    weight_g = np.array([1 / (len(group) - 1) for group in groups])
    total_n = error_gn.sum(axis=0)
    below_n = (error_gn**2 * weight_g[:, None]).sum(axis=0)
    freedom_n = np.divide(total_n**2, below_n, out=np.ones_like(total_n), where=below_n > 0)
    half_n = np.sqrt(total_n) * [student_95(max(1, int(freedom + 1e-9))) for freedom in freedom_n]
    return Contrast(value_n, half_n)
