"""How much scores and selections change with what should not matter: seeds, and which targets stand for a task.

Shape suffixes: n sampled rows, T target columns, V variants, S sources, G tasks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np

from influray.evaluation.paired_effect import student_95


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
    half = student_95(count - 1) * spread
    return mean - half, mean + half


def means_by_label(value_nG: np.ndarray, label_n: Sequence[str]) -> dict[str, np.ndarray]:
    """Return the mean line of the rows of each label, labels ascending; float64 [G] each."""
    labels, place_n = np.unique(np.asarray(label_n, object).astype(str), return_inverse=True)
    total_SG = np.zeros((len(labels), value_nG.shape[1]))
    np.add.at(total_SG, place_n, value_nG)
    return dict(zip(labels.tolist(), total_SG / np.bincount(place_n)[:, None], strict=True))
