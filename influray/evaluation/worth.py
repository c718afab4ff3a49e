"""What rows are worth to targets that are helped already: how far they raise the best that each has.

z_ij is the influence of row i on target j in standard deviations of j's column over the pool. Rows S help a target as
far as the best of them does, M_j = max(0, max over S of z_ij), and rows R add max(0, max over R of z_ij - M_j). Their
mean over targets is the coverage that `selectors.facility_location` goes up: what rows add falls with what is there,
a copy of a row of S adds nothing, and many rows that help the same target add what the best of them does. The mean of
z over rows, by which BIDS judges, knows none of this: a copy of the best chosen row would be worth as much again.

Shape suffixes: n rows.
"""

from __future__ import annotations

import numpy as np


def expected_gain(z_n: np.ndarray, least: float, count: int) -> float:
    """Return what `count` of n rows, drawn at random without repeats, add to a target in expectation, exactly.

    With z sorted, the largest first, it is the sum over i of P_i * max(0, z_i - least), where P_i = binom(n - i,
    count - 1) / binom(n, count) is the chance that the i-th is the best that is drawn. `least` is what the target has.
    """
    n = len(z_n)
    assert 1 <= count <= n, "so many are drawn"
    above = np.sort(z_n[z_n > least])[::-1] - least
    place = np.arange(1, len(above))
    ratio = np.maximum(n - place - count + 1, 0) / (n - place)  # of P_(i + 1) to P_i
    chance = count / n * np.cumprod(np.append(1.0, ratio))
    return float(chance[: len(above)] @ above)
