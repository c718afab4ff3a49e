"""Strata and Gumbel draws against their definitions, and the longest rows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError
from influray.selectors.api import select
from tests.reference import drawn as reference
from tests.unit.test_balanced import KINDS, scores


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    count=st.sampled_from((1, 2, 8, 64)),
    drop=st.sampled_from((0, 0.1)),
)
def test_strata_choose_what_the_plain_draw_does(kind, seed, count, drop):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    # A grid on which the width of a stratum has no rounding: where a level ends is a matter of a last digit.
    merit_N = np.round(scores(kind, n, 1, rng)[:, 0].clip(-100, 100)) * 1.0
    merit_N[: min(2, n)] = [-128, 128][: min(2, n)]
    budget = int(rng.integers(1, n + 1))
    if drop:
        merit_N = np.append(merit_N, np.full(n // 8 + 1, 128.0))  # these are set aside, and the width stays
    draw = np.random.default_rng(3).permutation(len(merit_N)).tolist()
    found = select(merit_N[:, None], ["a"], budget, method="strata", seed=3, strata=count, drop_share=drop)
    assert set(found.rows.tolist()) == reference.strata(merit_N, budget, count, drop, draw)


def test_strata_reach_every_level_and_leave_the_highest_out():
    score_N1 = np.random.default_rng(0).random((10_000, 1)) ** 4  # few high ones
    found = select(score_N1, ["a"], 500, method="strata")
    limit = np.sort(score_N1[:, 0])[-1000]
    assert score_N1[found.rows].max() < limit
    level = np.bincount((score_N1[found.rows, 0] / limit * 50).astype(int), minlength=50)
    assert level.min() >= 8
    assert level.max() <= 12
    assert select(score_N1, ["a"], 10_000, method="strata").rows[-1] == score_N1[:, 0].argmax(), "set aside, not lost"


def test_with_every_row_set_aside_the_lowest_merits_come_first():
    found = select(np.array([[3.0], [1.0], [2.0]]), ["a"], 2, method="strata", drop_share=1.0)
    assert found.rows.tolist() == [1, 2]


def test_the_first_pick_of_a_gumbel_draw_has_the_odds_of_its_merit():
    score_N1 = np.array([[-1.0], [0.0], [0.5], [2.0]])
    picks = [select(score_N1, ["a"], 1, method="gumbel_top_k", seed=seed).rows[0] for seed in range(3000)]
    expected = reference.chances(score_N1[:, 0], 0.5) * 3000
    assert (np.abs(np.bincount(picks, minlength=4) - expected) < 5 * np.sqrt(expected) + 1).all()


def test_a_cold_draw_is_top_k_and_a_hot_one_is_uniform():
    score_NT = np.random.default_rng(1).standard_normal((200, 3))
    ranked = select(score_NT, ["a"] * 3, 200, method="top_k", reduction="mean").rows
    cold = select(score_NT, ["a"] * 3, 200, method="gumbel_top_k", temperature=1e-9, seed=4)
    assert cold.rows.tolist() == ranked.tolist()
    hot = select(score_NT, ["a"] * 3, 200, method="gumbel_top_k", temperature=1e9, seed=4).rows
    flat = select(np.zeros((200, 3)), ["a"] * 3, 200, method="gumbel_top_k", seed=4).rows
    assert hot.tolist() == flat.tolist()
    assert len(set(hot[:20].tolist()) & set(ranked[:20].tolist())) < 8


def test_dsir_draws_with_the_odds_of_its_importance_weights():
    weight_N = np.array([8.0, 4.0, 2.0, 1.0, 1.0])
    log_N1 = np.log(weight_N)[:, None]
    picks = [select(log_N1, ["a"], 1, method="dsir", seed=seed).rows[0] for seed in range(3000)]
    share_N = np.bincount(picks, minlength=5) / 3000
    expected_N = weight_N / weight_N.sum()
    assert (np.abs(share_N - expected_N) < 4 * np.sqrt(expected_N * (1 - expected_N) / 3000)).all()


@pytest.mark.parametrize("method", ["strata", "gumbel_top_k"])
def test_another_seed_is_another_draw(method):
    score_NT = np.random.default_rng(2).standard_normal((200, 3))
    draws = [select(score_NT, ["a"] * 3, 50, method=method, seed=seed).rows.tolist() for seed in (0, 0, 1)]
    assert draws[0] == draws[1] != draws[2]
    with pytest.raises(ConfigError, match="seed: found -1"):
        select(score_NT, ["a"] * 3, 50, method=method, seed=-1)


def test_longest_takes_the_most_tokens_and_of_equals_the_lowest_row():
    tokens = np.random.default_rng(3).integers(1, 9, 50).tolist()
    found = select(np.zeros((50, 1)), ["a"], 20, method="longest", rows={"tokens": tokens})
    assert found.rows.tolist() == sorted(range(50), key=lambda row: (-tokens[row], row))[:20]
    assert found.merit.tolist() == [tokens[row] for row in found.rows]
    assert (found.column == -1).all()


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        ("longest", {}, r"rows\.tokens: 'longest' needs the tokens of every row; give rows="),
        ("longest", {"rows": {"tokens": ["a", "b", "c"]}}, r"rows\.tokens: found 'a' at row 0"),
        ("longest", {"rows": {"tokens": [1, float("nan"), 2]}}, r"rows\.tokens: found nan at row 1"),
        ("strata", {"strata": 0}, r"options\.strata: found 0, expected an integer of 1 or more"),
        ("strata", {"strata": 2.5}, r"options\.strata: found 2\.5"),
        ("strata", {"drop_share": 1.5}, r"options\.drop_share: found 1\.5, expected a number from 0 to 1"),
        ("gumbel_top_k", {"temperature": 0}, r"options\.temperature: found 0, expected a number above 0"),
        ("gumbel_top_k", {"temperature": float("inf")}, r"options\.temperature: found inf"),
        ("gumbel_top_k", {"reduction": "sums"}, r"options\.reduction: .* did you mean 'sum'"),
    ],
)
def test_a_wrong_option_says_what_would_be_right(method, options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(3), list("aab"), 2, method=method, **options)
