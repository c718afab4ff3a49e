"""Clusters of like rows, and the selectors that choose within them, against their loops."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError
from influray.selectors import clusters
from influray.selectors.api import select
from influray.selectors.row_facts import ArrayFeatures
from tests.reference import clustered as reference


def unit_rows(n: int, dimension: int, rng: np.random.Generator, blobs: int = 1) -> np.ndarray:
    middle = 2 * rng.standard_normal((blobs, dimension))
    rows = rng.standard_normal((n, dimension)) + middle[rng.integers(0, blobs, n)]
    return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.sampled_from((1, 3, 7, "auto")), block=st.integers(1, 50))
def test_clusters_are_those_of_the_plain_steps(seed, count, block):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    unit_ND = unit_rows(n, 5, rng, 3)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(clusters, "BLOCK_ROWS", block)
        found = clusters.cluster_rows(ArrayFeatures(unit_ND, n), np.arange(n), count, 4)
    k = min(n, max(1, int(n**0.5)) if count == "auto" else count)
    first = sorted(np.random.default_rng(4).choice(n, k, replace=False).tolist())
    label_N = reference.lloyd(unit_ND.astype(np.float64), first, clusters.STEPS)
    assert found.label_N.tolist() == label_N.tolist()


def test_rows_of_one_blob_are_of_one_cluster_in_a_sketch_too():
    rng = np.random.default_rng(0)
    middle = rng.standard_normal((4, 2000))
    place_N = np.repeat(np.arange(4), 50)
    rows = middle[place_N] + 0.5 * rng.standard_normal((200, 2000))
    found = clusters.cluster_rows(ArrayFeatures(rows, 200), np.arange(200), 40, 0)
    assert all(len(set(place_N[found.label_N == label].tolist())) == 1 for label in set(found.label_N.tolist()))
    assert found.sketch_Nm.shape == (200, 256)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), count=st.sampled_from((1, 3, "auto")), sign=st.sampled_from((0.0, 1.0, -3.0)))
def test_group_chooses_what_the_plain_loop_does(seed, count, sign):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 40))
    unit_ND, merit_N = unit_rows(n, 6, rng, 3), rng.standard_normal(n) + sign
    budget = int(rng.integers(1, n + 1))
    found = select(merit_N[:, None], ["a"], budget, method="group", features=unit_ND, clusters=count, seed=2)
    label_N = clusters.cluster_rows(ArrayFeatures(unit_ND, n), np.arange(n), count, 2).label_N
    expected = reference.group(merit_N, unit_ND.astype(np.float64), label_N, budget)
    assert found.rows.tolist() == expected


def test_group_holds_most_copies_back():
    rng = np.random.default_rng(1)
    unit_ND, merit_N = unit_rows(100, 40, rng), rng.uniform(1, 2, 100)
    unit_ND[:10], merit_N[:10] = unit_ND[0], 3.0
    plain = select(merit_N[:, None], ["a"], 20, method="sum").rows
    found = select(merit_N[:, None], ["a"], 20, method="group", features=unit_ND, clusters=1).rows
    assert plain[:10].tolist() == list(range(10))
    assert found[0] == 0
    assert len(set(found[:10].tolist()) & set(range(10))) <= 4


def test_group_serves_clusters_in_proportion_to_their_rows():
    rng = np.random.default_rng(2)
    middle = 10 * np.eye(3, 8)
    place_N = np.repeat([0, 1, 2], [20, 60, 120])
    rows = middle[place_N] + rng.standard_normal((200, 8))
    found = select(rng.random((200, 1)), ["a"], 40, method="group", features=rows, clusters=20).rows
    assert np.abs(np.bincount(place_N[found]) - [4, 12, 24]).max() <= 3


def test_the_first_pick_of_a_weighted_draw_has_the_odds_of_its_sensitivity():
    rng = np.random.default_rng(3)
    unit_ND, loss_N = unit_rows(6, 3, rng), rng.uniform(0.1, 1, 6)
    centre = unit_ND.astype(np.float64).mean(axis=0)
    square_N = ((unit_ND - centre) ** 2).sum(axis=1)
    odds_N = loss_N[square_N.argmin()] + 2 * square_N
    odds_N /= odds_N.sum()
    options = {"features": unit_ND, "clusters": 1, "slope": 2.0}
    picks = [select(loss_N[:, None], ["a"], 1, method="weighted_draw", seed=s, **options) for s in range(3000)]
    share_N = np.bincount([int(one.rows[0]) for one in picks], minlength=6) / 3000
    assert (np.abs(share_N - odds_N) < 4 * np.sqrt(odds_N * (1 - odds_N) / 3000)).all()
    np.testing.assert_allclose(picks[0].merit, odds_N[picks[0].rows], rtol=1e-5)


def test_rows_without_any_sensitivity_are_drawn_last():
    rng = np.random.default_rng(4)
    unit_ND = unit_rows(20, 4, rng)
    unit_ND[:12] = unit_ND[0]
    loss_N1 = np.where(np.arange(20) < 12, -1.0, 2.0)[:, None]
    options = {"features": unit_ND, "clusters": 20, "slope": 0.0}
    draws = [select(loss_N1, ["a"], 20, method="weighted_draw", seed=seed, **options).rows.tolist() for seed in (0, 1)]
    assert all(set(draw[:8]) == set(range(12, 20)) for draw in draws)
    assert draws[0][8:] != draws[1][8:], "by chance, not by place"


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("group", {"features": None}, r"features: 'group' compares the rows of the pool; give their features"),
        ("weighted_draw", {"features": None}, r"features: 'weighted_draw' compares the rows of the pool"),
        ("group", {"clusters": 0}, r"options\.clusters: found 0, expected an integer of 1 or more or auto"),
        ("weighted_draw", {"clusters": "root"}, r"options\.clusters: found 'root'"),
        ("weighted_draw", {"slope": -1}, r"options\.slope: found -1, expected a number of 0 or more"),
    ],
)
def test_what_is_wrong_is_named(method, options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(3), list("abc"), 1, method=method, **{"features": np.eye(3), **options})
