"""What it costs to carry the mass of one set of points to another: optimal transport, smoothed by a little entropy.

Shape suffixes: U points of one set, V points of the other.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

STEPS = 32  # of scaling, between two changes of the kernel
MOST_STEPS = 2048
WIDEST = 200.0  # logarithm of a scaling, beyond which the kernel is made anew
MASS = 1e-3  # of a total of 1, that may arrive at a wrong place


@dataclass(frozen=True)
class Transport:
    """The cost of a plan, and how far off that is of the plan that sends all mass where it belongs."""

    cost: float
    error: float
    potential_V: np.ndarray  # to begin with at a problem with the same V points


def transport(cost_UV: np.ndarray, smoothing: float, potential_V: np.ndarray | None = None) -> Transport:
    """Return the transport between U points of equal mass and V points of equal mass, 1 in all, of least cost.

    Least is <P, cost> + smoothing * KL(P | all pairs alike); the cost that is returned is <P, cost> alone, at most
    smoothing * log(min(U, V)) above the least without smoothing. float64, in the log domain: kernels are made around
    potentials, so that no smoothing is too small. All mass leaves as it should; steps go on until MASS or less arrives
    at wrong places, or for MOST_STEPS. `error` bounds what that does to the cost: wrong mass / 2 * (max - min of cost).

    Cost: two products with a U x V matrix a step; some hundred steps from nowhere, some tens from the potentials of a
    problem that is nearly the same. Memory: twice the costs.

    Source: Cuturi 2013, arXiv 1306.0895; stabilised as in Schmitzer 2019, arXiv 1610.06519; smoothing is halved on the
    way to what is asked for, as there. The bound: Altschuler, Weed and Rigollet 2017, arXiv 1705.09634, lemma 7.
    """
    reach = float(cost_UV.max() - cost_UV.min())
    V = cost_UV.shape[1]
    if reach == 0:
        return Transport(float(cost_UV[0, 0]), 0.0, np.zeros(V))
    now = smoothing if potential_V is not None else max(smoothing, reach / 4)
    potential_V = np.zeros(V) if potential_V is None else potential_V
    left = MOST_STEPS
    while True:
        last = now <= smoothing
        plan_UV, potential_V, wrong, taken = _scaled(cost_UV, now, potential_V, left if last else STEPS)
        left -= taken
        if last and (wrong <= MASS or left <= 0):
            return Transport(float((plan_UV * cost_UV).sum()), wrong / 2 * reach, potential_V)
        now = now if last else max(smoothing, now / 2)


def _scaled(
    cost_UV: np.ndarray, smoothing: float, potential_V: np.ndarray, most: int
) -> tuple[np.ndarray, np.ndarray, float, int]:
    """Return (plan, potential, mass at wrong places, steps) after at most `most` steps around one kernel, or a few."""
    U, V = cost_UV.shape
    left_U = -_soft_max((potential_V - cost_UV) / smoothing - np.log(V), axis=1) * smoothing
    potential_V = -_soft_max((left_U[:, None] - cost_UV) / smoothing - np.log(U), axis=0) * smoothing
    plan_UV = np.exp((left_U[:, None] + potential_V - cost_UV) / smoothing) / (U * V)
    from_U, to_V = np.ones(U), np.ones(V)
    wrong, taken = 1.0, 0
    for taken in range(1, min(STEPS, most) + 1):
        from_U = 1 / U / (plan_UV @ to_V)
        arrived_V = (from_U @ plan_UV) * to_V
        wrong = float(np.abs(arrived_V - 1 / V).sum())
        if wrong <= MASS or taken == min(STEPS, most):
            break
        to_V = to_V / (V * arrived_V)
        if np.abs(np.log(to_V)).max() > WIDEST or np.abs(np.log(from_U)).max() > WIDEST:
            break
    plan_UV *= from_U[:, None] * to_V
    return plan_UV, potential_V + smoothing * np.log(to_V), wrong, taken


def _soft_max(score: np.ndarray, axis: int) -> np.ndarray:
    """Return the logarithm of the sum of exponentials along an axis."""
    top = score.max(axis=axis, keepdims=True)
    return np.log(np.exp(score - top).sum(axis=axis)) + top.squeeze(axis)
