"""The curve over budgets against every prefix computed alone, and the knee against curves whose knee is known."""

from __future__ import annotations

import numpy as np
import pytest

from influray.evaluation import budget_curve as curve_module
from influray.evaluation.balance import measure_balance
from influray.evaluation.budget_curve import budget_grid, measure_curve
from influray.evaluation.knee import find_knee
from influray.protocols import DataError
from influray.selectors.api import select
from influray.store.attribution import ArrayAttribution
from tests.reference.budget_curve import farthest_from_the_chord, prefixes

GROUPS = ("math", "code", "math", "chat", "code", "math")


def source(seed: int = 0) -> ArrayAttribution:
    score_NT = np.random.default_rng(seed).standard_normal((300, 6)) * [1, 10, 0.1, 3, 1, 1] + 4
    return ArrayAttribution(score_NT.astype(np.float32))


def standardised(matrix: ArrayAttribution) -> np.ndarray:
    score_NT = np.concatenate([block for _, block in matrix.blocks()]).astype(np.float64)
    return (score_NT - score_NT.mean(axis=0)) / score_NT.std(axis=0)


@pytest.mark.parametrize("rows_at_once", [1, 7, 4096])
@pytest.mark.parametrize("seed", range(3))
def test_every_point_is_what_that_prefix_gives_alone(monkeypatch, seed, rows_at_once):
    monkeypatch.setattr(curve_module, "BLOCK_ROWS", rows_at_once)
    matrix = source(seed)
    rows = np.random.default_rng(seed).permutation(300)[:173]
    found = measure_curve(matrix, matrix.stats, GROUPS, rows, budget_grid(173))
    slow = prefixes(standardised(matrix), GROUPS, rows.tolist(), found.budget_M.tolist())
    for name, values in {
        "macro": found.macro,
        "worst": found.worst,
        "spread": found.spread,
        "coverage": found.coverage_M,
        "worst_coverage": found.worst_covered,
    }.items():
        np.testing.assert_allclose(values, [one[name] for one in slow], rtol=1e-9, atol=1e-12, err_msg=name)
    assert [found.worst_task(m) for m in range(len(slow))] == [one["worst_task"] for one in slow]


def test_the_last_point_is_the_balance_of_the_selection():
    matrix = source()
    rows = select(matrix, GROUPS, 90).rows
    found = measure_curve(matrix, matrix.stats, GROUPS, rows, budget_grid(90))
    by_task = measure_balance(matrix, matrix.stats, GROUPS, rows).aid_by_task()
    assert found.tasks == ("math", "code", "chat")
    np.testing.assert_allclose(found.aid_MG[-1], [by_task[task].mean for task in found.tasks], rtol=1e-12, atol=1e-14)


def test_a_curve_of_bids_is_made_of_its_selections_for_smaller_budgets():
    matrix = source()
    found = measure_curve(matrix, matrix.stats, GROUPS, select(matrix, GROUPS, 80).rows, budget_grid(80))
    for m in (3, 10, 20):
        rows = select(matrix, GROUPS, int(found.budget_M[m])).rows
        alone = measure_curve(matrix, matrix.stats, GROUPS, rows, np.array([len(rows)]))
        np.testing.assert_allclose(found.aid_MG[m], alone.aid_MG[0], rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("method", ["bids", "less", "random"])
def test_coverage_never_falls(method):
    matrix = source(1)
    rows = select(matrix, GROUPS, 120, method=method).rows
    found = measure_curve(matrix, matrix.stats, GROUPS, rows, np.arange(1, 121))
    assert (np.diff(found.coverage_M) >= 0).all()
    assert (np.diff(found.worst_covered) >= 0).all()
    assert found.coverage_M[0] == pytest.approx(found.aid_MG[0] @ [3 / 6, 2 / 6, 1 / 6]), "one row: its own Z"


def test_columns_that_take_no_part_and_their_tasks_are_not_in_the_curve():
    score_NT = np.concatenate([block for _, block in source().blocks()])
    score_NT[:, 3] = 1e9
    matrix = ArrayAttribution(score_NT)
    found = measure_curve(matrix, matrix.stats, GROUPS, np.arange(40), budget_grid(40))
    assert found.tasks == ("math", "code")
    assert np.isfinite(found.coverage_M).all()


def test_nothing_to_measure_is_an_error():
    matrix = source()
    with pytest.raises(DataError, match="0 rows are chosen"):
        measure_curve(matrix, matrix.stats, GROUPS, np.zeros(0, np.int64), np.array([1]))
    flat = ArrayAttribution(np.ones((5, 6)))
    with pytest.raises(DataError, match="0 of 6 columns"):
        measure_curve(flat, flat.stats, GROUPS, np.arange(5), np.array([5]))


@pytest.mark.parametrize("total", [1, 2, 5, 24, 200, 28_800])
def test_the_grid_ascends_from_within_the_budget_to_all_of_it(total):
    grid = budget_grid(total)
    assert grid[0] >= 1
    assert grid[-1] == total
    assert (np.diff(grid) > 0).all()
    assert len(grid) <= 24


def test_the_knee_of_a_known_curve_is_where_its_slope_is_the_mean_slope():
    x = np.arange(1.0, 1001.0)
    # y = log x: 1 / x = log(1000) / 999.
    assert x[find_knee(x, np.log(x)).index] == pytest.approx(999 / np.log(1000), abs=1)
    # y = 1 - exp(-x / 100): exp(-x / 100) / 100 = its rise over 999.
    rise = (np.exp(-0.01) - np.exp(-10)) / 999
    assert x[find_knee(x, 1 - np.exp(-x / 100)).index] == pytest.approx(-100 * np.log(100 * rise), abs=1)
    corner = np.minimum(x, 250)
    assert x[find_knee(x, corner).index] == 250


def test_the_knee_is_the_point_farthest_from_the_chord():
    rng = np.random.default_rng(0)
    for _ in range(100):
        x = np.unique(rng.integers(1, 500, 24)).astype(float)
        y = np.sqrt(x) + rng.normal(0, 0.1, len(x))
        place = find_knee(x, y).index
        flat = (x - x[0]) / (x[-1] - x[0])
        if place is not None:
            assert place == farthest_from_the_chord(flat.tolist(), ((y - y.min()) / (y.max() - y.min())).tolist())


@pytest.mark.parametrize(("factor", "shift"), [(1e-6, 0.0), (1.0, -5.0), (1e6, 1e6)])
def test_the_knee_does_not_depend_on_the_units(factor, shift):
    x = budget_grid(400).astype(float)
    assert find_knee(x * 7, np.sqrt(x) * factor + shift) == find_knee(x, np.sqrt(x))


@pytest.mark.parametrize(
    ("y", "reason"),
    [
        (np.arange(24.0), "grows evenly"),
        (np.arange(24.0) ** 3, "grows ever faster"),
        (-np.arange(24.0), "does not grow"),
        (np.ones(24), "does not grow"),
        (np.tanh((np.arange(24.0) - 12) / 3), "bends both ways"),
    ],
)
def test_a_curve_without_a_knee_says_why(y, reason):
    found = find_knee(np.arange(24.0), y)
    assert (found.index, found.reason) == (None, reason)


def test_too_few_points_have_no_knee():
    assert find_knee(np.arange(4.0), np.array([0.0, 3, 3.5, 4])).reason == "only 4 budgets"
