"""Smoothed transport against exact transport, and what its error bound promises."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from influray.selectors.optimal_transport import MASS, transport
from tests.reference.exact_transport import least_cost


@pytest.mark.parametrize("seed", range(12))
def test_it_lies_between_the_least_cost_and_what_smoothing_may_add(seed):
    rng = np.random.default_rng(seed)
    U, V = rng.integers(1, 7, 2)
    cost_UV = rng.random((U, V))
    exact = least_cost(cost_UV)
    for smoothing in (0.3, 0.03, 0.003):
        found = transport(cost_UV, smoothing)
        assert exact - found.error - 1e-9 <= found.cost
        assert found.cost <= exact + smoothing * math.log(min(U, V)) + found.error + 1e-9
        assert found.error <= MASS * (cost_UV.max() - cost_UV.min())
    assert found.cost == pytest.approx(exact, abs=1e-3)


def test_the_reference_knows_the_cheapest_assignment():
    cost_UV = np.random.default_rng(0).random((5, 5))
    ways = itertools.permutations(range(5))
    assert least_cost(cost_UV) == pytest.approx(min(sum(cost_UV[u, v] for u, v in enumerate(way)) for way in ways) / 5)


def test_sets_that_are_the_same_are_no_way_apart():
    points = np.random.default_rng(1).standard_normal((30, 4))
    distance = np.linalg.norm(points[:, None] - points, axis=2)
    order = np.random.default_rng(2).permutation(30)
    assert transport(distance[:, order], 0.003 * distance.std()).cost < 1e-3 * distance.mean()


def test_where_it_begins_and_how_points_are_ordered_changes_it_by_no_more_than_its_error():
    rng = np.random.default_rng(3)
    cost_UV = rng.random((40, 17))
    found = transport(cost_UV, 0.01)
    again = transport(cost_UV, 0.01, found.potential_V + 0.2 * rng.standard_normal(17))
    moved = transport(cost_UV[rng.permutation(40)], 0.01)
    for other in (again, moved):
        assert abs(other.cost - found.cost) <= other.error + found.error + 1e-9


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
def test_units_do_not_matter_and_hard_costs_neither_overflow_nor_vanish(scale):
    cost_UV = np.random.default_rng(4).random((9, 6)) ** 8 * scale  # most near 0, some near 1
    found = transport(cost_UV, 1e-4 * scale)
    assert found.cost == pytest.approx(least_cost(cost_UV / scale) * scale, abs=2e-3 * scale)


def test_costs_that_are_all_alike_are_the_cost():
    found = transport(np.full((3, 5), 2.5), 0.1)
    assert (found.cost, found.error) == (2.5, 0.0)
