"""How much scores and selections change with what should not matter: seeds, and which targets stand for a task.

Shape suffixes: n sampled rows, T target columns, V variants, S sources, G tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

# Student's t at 97.5 %, 1 to 30 degrees of freedom (any table of it; 1.96 at infinity).
_T975 = (
    *(12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228),
    *(2.201, 2.179, 2.160, 2.145, 2.131, 2.120, 2.110, 2.101, 2.093, 2.086),
    *(2.080, 2.074, 2.069, 2.064, 2.060, 2.056, 2.052, 2.048, 2.045, 2.042),
)


def times_chosen(selections: Sequence[Iterable[Hashable]]) -> dict[Hashable, int]:
    """Return how many of the selections have chosen each item that any has, most often first, then by item."""
    counts = Counter(item for one in selections for item in set(one))
    return dict(sorted(counts.items(), key=lambda kv: (-kv[1], kv[0])))


def mean_interval(values_V: Sequence[float]) -> tuple[float, float] | None:
    """Return the 95 % interval of the mean by Student's t, None of fewer than two values."""
    count = len(values_V)
    if count < 2:
        return None
    mean = math.fsum(values_V) / count
    spread = math.sqrt(math.fsum((value - mean) ** 2 for value in values_V) / (count - 1) / count)
    quantile = _T975[count - 2] if count - 1 <= len(_T975) else 1.96 + 2.4 / (count - 1)
    return mean - quantile * spread, mean + quantile * spread


def means_by_label(value_nG: np.ndarray, label_n: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mean line of the rows of each label, labels ascending; float64 [G] each."""
    labels, place_n = np.unique(np.asarray(label_n, object).astype(str), return_inverse=True)
    total_SG = np.zeros((len(labels), value_nG.shape[1]))
    np.add.at(total_SG, place_n, value_nG)
    return dict(zip(labels.tolist(), total_SG / np.bincount(place_n)[:, None], strict=True))
