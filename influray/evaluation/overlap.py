"""How alike two selections are, as sets and as rankings, and what a selection is made of."""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence

import numpy as np


def jaccard(one: Iterable[Hashable], other: Iterable[Hashable]) -> float:
    """Return |both| / |either|, in [0, 1]; two empty selections are alike (1)."""
    first, second = set(one), set(other)
    either = len(first | second)
    return len(first & second) / either if either else 1.0


def rank_biased_overlap(one: Sequence[Hashable], other: Sequence[Hashable], persistence: float = 0.98) -> float:
    """Return the extrapolated rank-biased overlap, in [0, 1]: agreement of two orders, the top counting most.

    With persistence p a reader looks at depth d with probability p^(d-1): of the weight, 86 % lies on the first
    100 ranks at p = 0.98. The lists hold no repeats and may differ in length; two empty ones are alike (1).
    O(n). Source: Webber, Moffat, Zobel 2010, formula 32.

    Raises:
        ValueError: persistence outside (0, 1), or a list with repeats.
    """
    if not 0 < persistence < 1:
        raise ValueError(f"persistence must be between 0 and 1, found {persistence}")
    if len(set(one)) < len(one) or len(set(other)) < len(other):
        raise ValueError("a ranking holds every item once")
    short, long = sorted((one, other), key=len)
    if not short:
        return 1.0 if not long else 0.0
    rank = {item: depth for depth, item in enumerate(long, start=1)}
    # An item is shared from the depth at which both lists have shown it.
    shown = [max(depth, rank[item]) for depth, item in enumerate(short, start=1) if item in rank]
    shared = np.cumsum(np.bincount(np.array(shown, np.int64), minlength=len(long) + 1))[1:]
    depth = np.arange(1, len(long) + 1)
    at_short, at_long = int(shared[len(short) - 1]), int(shared[-1])
    # Beyond its end the shorter list is taken to go on agreeing at the rate it had there.
    assumed = np.maximum(depth - len(short), 0) * (at_short / len(short))
    seen = float(((shared + assumed) / depth * persistence**depth).sum()) * (1 - persistence) / persistence
    return seen + ((at_long - at_short) / len(long) + at_short / len(short)) * persistence ** len(long)


def shares(labels: Iterable[Hashable]) -> dict[Hashable, float]:
    """Return label -> its share, largest first, equal ones by their text; empty for no labels."""
    counts = Counter(labels)
    total = sum(counts.values())
    return {label: count / total for label, count in sorted(counts.items(), key=lambda kv: (-kv[1], str(kv[0])))}
