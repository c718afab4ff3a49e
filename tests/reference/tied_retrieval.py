"""Recall, reciprocal rank and average precision by their definitions, a mean over every order of equal scores."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from fractions import Fraction


def retrieval_by_orders(score: Sequence[float], relevant: Sequence[bool], k: int) -> tuple[float, float, float]:
    orders = [
        order
        for order in itertools.permutations(range(len(score)))
        if all(score[a] >= score[b] for a, b in itertools.pairwise(order))
    ]
    total = sum(relevant)
    recalls, ranks, precisions = [], [], []
    for order in orders:
        places = [place for place, row in enumerate(order, start=1) if relevant[row]]
        recalls.append(Fraction(sum(place <= k for place in places), total))
        ranks.append(Fraction(1, places[0]))
        precisions.append(sum(Fraction(n, place) for n, place in enumerate(places, start=1)) / total)
    return tuple(float(sum(values) / len(orders)) for values in (recalls, ranks, precisions))
