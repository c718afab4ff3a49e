"""KNN-Uniform and KNN-KDE of TSDS against their loops, and what copies of a row get."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError
from influray.selectors import columns, nearest_lists
from influray.selectors.api import select
from influray.store.attribution import ArrayAttribution
from tests.reference import nearest_targets as reference
from tests.unit.test_balanced import KINDS, scores


def unit_rows(n: int, dimension: int, rng: np.random.Generator) -> np.ndarray:
    rows = rng.standard_normal((n, dimension)) + 1.5 * rng.integers(0, 2, (n, 1))
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    most=st.integers(1, 12),
    alpha=st.sampled_from((0.01, 0.5, 0.9)),
    weight=st.sampled_from((1.0, 3.0)),
    method=st.sampled_from(("knn_uniform", "knn_kde")),
)
def test_the_mass_of_every_row_equals_the_plain_loop(kind, seed, small, most, alpha, weight, method):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(2, 6))
    # On a grid, on which sums have no rounding: where they stop is a matter of a last digit.
    score_NT = np.round(scores(kind, n, t, rng).clip(-1e3, 1e3) * 64) / 64
    unit_ND, groups = unit_rows(n, 4, rng), ["ab"[j % 2] for j in range(t)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nearest_lists, "LISTED_SHARE", 1)
        patch.setattr(nearest_lists, "BLOCK_ROWS", small)
        patch.setattr(columns, "GROUP_BYTES", 100 * small)
        found = select(
            *(ArrayAttribution(score_NT, small), groups, n),
            method=method,
            features=unit_ND,
            reduction_options={"neighbours": most, "alpha": alpha, "scale": 4.0},
            task_weights={"b": weight},
        )
        listed = np.unique(np.argsort(-score_NT, axis=0, kind="stable")[:most])
    capacity_N = np.ones(n)
    if method == "knn_kde":
        density_U = reference.densities(unit_ND[listed].astype(np.float64), 0.75)
        capacity_N[listed] = 1 / np.maximum(1, np.round(density_U * 1024) / 1024)
    weight_C = np.array([(1.0, weight)[j % 2] for j in range(t)])
    expected_N = reference.mass(score_NT, capacity_N, min(most, n), weight_C, alpha, 4.0)
    order = np.lexsort((-score_NT.max(axis=1), -np.round(expected_N, 12))).tolist()
    np.testing.assert_allclose(found.merit, expected_N[found.rows], rtol=1e-9, atol=1e-15)
    if method == "knn_uniform" and weight == 1.0:
        assert found.rows.tolist() == order
        K = reference.uniform_neighbours(score_NT, min(most, n), alpha, 4.0)
        assert np.round(expected_N.max() * K * t, 9) == round(expected_N.max() * K * t), "parts of 1 / K of a target"
    assert found.column.tolist() == score_NT[found.rows].argmax(axis=1).tolist()


def test_rows_that_are_near_to_many_targets_come_first_and_then_the_nearest_to_one():
    score_NT = np.zeros((40, 3))
    score_NT[7] = [0.5, 0.5, 0.5]
    score_NT[3], score_NT[9], score_NT[21] = [0.9, 0, 0], [0, 0.8, 0], [0, 0, 0.7]
    found = select(score_NT, list("abc"), 40, method="knn_uniform", reduction_options={"neighbours": 2})
    assert found.rows[:4].tolist() == [7, 3, 9, 21]
    np.testing.assert_allclose(found.merit[:5], [1 / 2, 1 / 6, 1 / 6, 1 / 6, 0])
    assert found.rows[4:].tolist() == [i for i in range(40) if i not in (3, 7, 9, 21)]


def test_copies_share_what_one_row_had():
    rng = np.random.default_rng(0)
    unit_ND = unit_rows(400, 600, rng)  # wider than a sketch
    unit_ND[:20] = unit_ND[0]
    target_TD = unit_ND[0] + 3 * unit_rows(12, 600, rng)
    score_NT = unit_ND @ (target_TD / np.linalg.norm(target_TD, axis=1, keepdims=True)).T
    uniform = select(score_NT, ["a"] * 12, 30, method="knn_uniform")
    density = select(score_NT, ["a"] * 12, 30, method="knn_kde", features=unit_ND)
    assert set(range(20)) <= set(uniform.rows.tolist())
    assert not set(range(20)) & set(density.rows.tolist())


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("knn_kde", {}, r"features: 'knn_kde' compares the rows of the pool; give their features, \[N, D\]"),
        ("knn_kde", {"reduction_options": {"sigma": 0}}, r"sigma: found 0, expected a number above 0"),
        ("knn_uniform", {"reduction_options": {"sigma": 1}}, r"sigma: 'neighbours' has no such option"),
        ("knn_uniform", {"reduction_options": {"neighbours": 0}}, r"neighbours: found 0, expected an integer of 1 or"),
        ("knn_uniform", {"reduction_options": {"alpha": 1}}, r"alpha: found 1, expected a number above 0, below 1"),
    ],
)
def test_what_is_wrong_is_named(method, options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(3), list("abc"), 1, method=method, **options)
