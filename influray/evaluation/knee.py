"""Where a curve of gains bends: the knee of Kneedle (Satopaa, Albrecht, Irwin, Raghavan 2011)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

FEWEST = 5  # points: of fewer, every bend is made by one of them
HEIGHT = 0.1  # over the chord, of the curve's range: below it, noise on a straight line bends as much


@dataclass(frozen=True)
class Knee:
    """The place of a knee among the points, or None and why there is none."""

    index: int | None
    reason: str = ""


def find_knee(x: np.ndarray, y: np.ndarray) -> Knee:
    """Return the knee of y over ascending x: up to it a step gains more than the whole curve does on average.

    x and y are brought to [0, 1] by their ends; the knee is the point highest above the diagonal, the first of equal
    ones. There is none where fewer than 5 points are given, where y does not end higher than it begins, where no
    point stands 0.1 above the diagonal (the curve is straight or grows ever faster), or where an earlier one lies 0.1
    below it (it bends both ways). Unlike the paper's streaming form: no smoothing, no sensitivity, one knee at most.
    """
    if len(x) < FEWEST:
        return Knee(None, f"only {len(x)} budgets")
    if not y[-1] > y[0]:
        return Knee(None, "does not grow")
    above = (y - y.min()) / (y.max() - y.min()) - (x - x[0]) / (x[-1] - x[0])
    place = int(above.argmax())
    if above[place] < HEIGHT:
        return Knee(None, "grows evenly" if above.min() > -HEIGHT else "grows ever faster")
    if above[: place + 1].min() < -HEIGHT:
        return Knee(None, "bends both ways")
    return Knee(place)
