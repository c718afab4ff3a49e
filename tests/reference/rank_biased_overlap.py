"""Rank-biased overlap as its paper writes it: sets of every depth."""

from __future__ import annotations


def by_sets(one: list, other: list, p: float) -> float:
    """Webber, Moffat, Zobel 2010, formula 32, depth by depth."""
    short, long = sorted((one, other), key=len)
    s, n = len(short), len(long)

    def shared(depth):
        return len(set(short[:depth]) & set(long[:depth]))

    seen = sum(shared(d) / d * p**d for d in range(1, n + 1))
    seen += sum(shared(s) * (d - s) / (s * d) * p**d for d in range(s + 1, n + 1))
    return (1 - p) / p * seen + ((shared(n) - shared(s)) / n + shared(s) / s) * p**n
