"""Near-copies by comparing every row with every other, and what pairs join by walking along them."""

from __future__ import annotations

import numpy as np


def near_copies(row_NF: np.ndarray, near: float) -> set[tuple[int, int]]:
    """Return all pairs (low, high) whose cosine in float64 is at least `near`."""
    wide_NF = row_NF.astype(np.float64)
    found = set()
    for i, one in enumerate(wide_NF):
        for j in range(i + 1, len(wide_NF)):
            lengths = np.sqrt((one @ one) * (wide_NF[j] @ wide_NF[j]))
            if lengths > 0 and one @ wide_NF[j] / lengths >= near:
                found.add((i, j))
    return found


def reachable(pairs: list[list[int]], count: int) -> list[int]:
    """Return for each of 0 to count - 1 the lowest that can be reached over pairs."""
    beside: dict[int, set[int]] = {i: set() for i in range(count)}
    for one, other in pairs:
        beside[one].add(other)
        beside[other].add(one)
    found = list(range(count))
    for start in range(count):
        seen, todo = {start}, [start]
        while todo:
            for other in beside[todo.pop()] - seen:
                seen.add(other)
                todo.append(other)
        found[start] = min(seen)
    return found
