"""Choosing under limits the plain way: try each row in the order of preference, and see whether the rest can be done."""

from __future__ import annotations

from itertools import combinations

import numpy as np


def completable(chosen: list[int], size: int, rows: list[int], kinds: dict[str, list[str]], bounds: dict) -> bool:
    """Whether some set of `size` of the rows holds all of `chosen` and keeps to the bounds. By trying every set."""
    free = [row for row in rows if row not in chosen]
    if len(chosen) > size:
        return False
    return any(keeps([*chosen, *more], kinds, bounds) for more in combinations(free, size - len(chosen)))


def keeps(rows: list[int], kinds: dict[str, list[str]], bounds: dict) -> bool:
    for kind, of in bounds.items():
        for name, (low, high) in of.items():
            count = sum(kinds[kind][row] == name for row in rows)
            if count < low or (high is not None and count > high):
                return False
    return True


def choose_in_order(
    order: list[int], size: int, kinds: dict[str, list[str]], bounds: dict, forced: list[int], excluded: list[int]
) -> list[int] | None:
    """Return the rows chosen, or None where no selection keeps to the bounds."""
    rows = [row for row in sorted(order) if row not in excluded]
    chosen = sorted(forced)
    if not completable(chosen, size, rows, kinds, bounds):
        return None
    for row in order:
        if len(chosen) == size:
            break
        if row in rows and row not in chosen and completable([*chosen, row], size, rows, kinds, bounds):
            chosen.append(row)
    return chosen


def balanced_under_limits(z_NC: np.ndarray, size: int, allowed, forced: list[int]) -> tuple[list[int], list[float]]:
    """BIDS as a plain loop; a row is passed over where `allowed(chosen, row)` says no. `size` None: until none is left."""
    chosen: list[int] = []
    merit: list[float] = []
    sum_C = np.zeros(z_NC.shape[1])

    def add(row: int) -> None:
        nonlocal sum_C
        mean_C = sum_C / len(chosen) if chosen else np.zeros(len(sum_C))
        merit.append(float((z_NC[row] - mean_C).max()))
        chosen.append(row)
        sum_C = sum_C + z_NC[row]

    for row in sorted(forced):
        add(row)
    barred: set[int] = set()
    while size is None or len(chosen) < size:
        free = [row for row in range(len(z_NC)) if row not in chosen and row not in barred]
        if not free:
            break
        mean_C = sum_C / len(chosen) if chosen else np.zeros(len(sum_C))
        best = free[int((z_NC[free] - mean_C).max(axis=1).argmax())]
        if allowed(chosen, best):
            add(best)
        else:
            barred.add(best)
    return chosen, merit


def apart_in_order(feature_ND: np.ndarray, threshold: float) -> list[int]:
    """Return the rows, tried in order, that have a cosine below the threshold with every one taken before."""
    unit_ND = feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)
    chosen: list[int] = []
    for row in range(len(unit_ND)):
        if not any(float(unit_ND[row] @ unit_ND[other]) >= threshold - 1e-12 for other in chosen):
            chosen.append(row)
    return chosen
