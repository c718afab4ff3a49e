"""Optimal transport between two sets of points of equal mass, exactly: shortest augmenting paths over whole masses."""

from __future__ import annotations

import math

import numpy as np


def least_cost(cost_UV: np.ndarray) -> float:
    """Return the least sum of mass times cost; each of U points sends 1 / U, each of V points takes 1 / V.

    A point of the one set has V units to send, one of the other takes U. One unit after the other goes the cheapest
    way, back over units that were sent before where that pays, found by Bellman and Ford.
    """
    U, V = cost_UV.shape
    sent, left, room = [[0] * V for _ in range(U)], [V] * U, [U] * V
    for _ in range(U * V):
        way = [0.0 if left[u] else math.inf for u in range(U)] + [math.inf] * V
        before: list[int | None] = [None] * (U + V)
        for _ in range(U + V):
            for u in range(U):
                for v in range(V):
                    cost = float(cost_UV[u, v])
                    if way[u] + cost < way[U + v] - 1e-12:
                        way[U + v], before[U + v] = way[u] + cost, u
                    if sent[u][v] and way[U + v] - cost < way[u] - 1e-12:
                        way[u], before[u] = way[U + v] - cost, U + v
        place = min((U + v for v in range(V) if room[v]), key=lambda one: way[one])
        room[place - U] -= 1
        while (earlier := before[place]) is not None:
            if place >= U:
                sent[earlier][place - U] += 1
            else:
                sent[place][earlier - U] -= 1
            place = earlier
        left[place] -= 1
    return sum(sent[u][v] * float(cost_UV[u, v]) for u in range(U) for v in range(V)) / (U * V)
