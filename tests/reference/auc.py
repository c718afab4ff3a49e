"""AUC by its definition: every pair is looked at."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction


def auc_by_pairs(positive: Sequence[float], negative: Sequence[float]) -> float:
    wins = sum(Fraction(p > n) + Fraction(p == n) / 2 for p, n in itertools.product(positive, negative))
    return float(wins / (len(positive) * len(negative)))
