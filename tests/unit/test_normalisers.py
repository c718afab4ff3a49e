"""Every normaliser against its textbook form, whatever the blocks, and what it leaves out."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import DataError
from influray.selectors import columns, sorted_columns
from influray.selectors.api import select
from influray.selectors.columns import falling_ranks, whole_columns
from influray.selectors.normalisers import NORMALISERS, normalise
from influray.store.attribution import ArrayAttribution
from tests.reference.normalised import mean_rank, normalised
from tests.unit.test_balanced import KINDS, scores

NAMES = sorted(NORMALISERS)


def lines(name: str, score_NT: np.ndarray, block_rows: int = 64, weights=None):
    groups = tuple("ab"[j % 2] for j in range(score_NT.shape[1]))
    found = normalise(name, ArrayAttribution(score_NT, block_rows), groups, weights or {})
    return found, found.lines(score_NT)


@settings(max_examples=300, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), name=st.sampled_from(NAMES), seed=st.integers(0, 2**32), small=st.integers(1, 20))
def test_it_equals_the_textbook(kind, name, seed, small):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    score_NT = scores(kind, n, t, rng).astype(rng.choice([np.float32, np.float64]))
    expected_NT = normalised(name, score_NT)
    with pytest.MonkeyPatch.context() as patch:
        # Few columns are held, and half of the sorted ones lie in a file.
        patch.setattr(columns, "GROUP_BYTES", 100 * small)
        patch.setattr(sorted_columns, "MEMORY_BYTES", 200 * small)
        patch.setattr(sorted_columns, "FEW", small)
        try:
            found, z_NC = lines(name, score_NT, small)
        except DataError:
            stats = ArrayAttribution(score_NT).stats
            assert not np.isfinite(expected_NT[:, stats.used_T]).all(axis=0).any()
            return
    np.testing.assert_allclose(z_NC, expected_NT[:, found.column_C], rtol=1e-6, atol=1e-9)
    exact = {"robust", "minmax", "rank", "none"}  # a mean and a standard deviation are rounded
    assert name not in exact or np.array_equal(z_NC, expected_NT[:, found.column_C])


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("block_rows", [1, 7, 256, 5000])
def test_the_blocks_do_not_change_a_bit(name, block_rows):
    score_NT = scores("heavy tails", 5000, 5, np.random.default_rng(0)).astype(np.float32)
    assert lines(name, score_NT, block_rows)[1].tobytes() == lines(name, score_NT)[1].tobytes()


@pytest.mark.parametrize("name", NAMES)
def test_higher_scores_never_get_a_lower_z(name):
    score_NT = scores("one ulp apart", 300, 4, np.random.default_rng(1)).astype(np.float32)
    found, _ = lines(name, score_NT)
    for place, column in enumerate(found.column_C):
        score_N = np.sort(score_NT[:, column])
        between_N = np.nextafter(score_N, np.float32(-np.inf))
        z_N, under_N = found.values(score_N, place), found.values(between_N, place)
        assert (np.diff(z_N) >= 0).all()
        assert (under_N <= z_N).all()
        lower_NN = score_N[None] < score_N[:, None]
        assert (np.where(lower_NN, z_N[None], -np.inf) <= under_N[:, None]).all(), "a bound on what is under a score"
        assert found.values(np.array(-np.inf), place) == -np.inf


@pytest.mark.parametrize("name", NAMES)
def test_values_of_mixed_columns_are_those_of_the_lines(name):
    score_NT = scores("plain", 50, 4, np.random.default_rng(2))
    found, z_NC = lines(name, score_NT, weights={"b": 3.0})
    line, place = np.nonzero(np.ones((50, 4), bool))
    assert np.array_equal(found.values(score_NT[line, place], place), z_NC[line, place])
    assert np.array_equal(z_NC, lines(name, score_NT)[1] * [1, 3, 1, 3]), "task weights scale columns of Z"


def test_a_column_of_which_half_is_equal_has_no_robust_scale(caplog):
    score_NT = scores("plain", 99, 3, np.random.default_rng(3))
    score_NT[:50, 1] = 0.25
    with caplog.at_level(logging.WARNING):
        found, _ = lines("robust", score_NT)
    assert found.column_C.tolist() == [0, 2]
    assert "1 of 3 columns take no part, the first is 1 of task b: equal in more than half of its scores" in caplog.text
    score_NT[:50] = 0.25
    with pytest.raises(DataError, match="none of the 3 columns .*'robust', all are equal in more than half"):
        select(score_NT, list("aab"), 5, normaliser="robust")


def test_the_share_that_ties_have_is_that_of_their_middle():
    _, z_NC = lines("rank", np.array([[1.0], [3.0], [3.0], [0.0]]))
    assert z_NC[:, 0].tolist() == [2 / 4, 3.5 / 4, 3.5 / 4, 1 / 4]


def test_falling_ranks_count_from_the_highest():
    rng = np.random.default_rng(4)
    for _ in range(50):
        score_N = rng.integers(0, 5, int(rng.integers(1, 20))).astype(float)
        assert falling_ranks(score_N).tolist() == [mean_rank(-score_N, -value) for value in score_N]


def test_whole_columns_come_in_order_whatever_fits(monkeypatch):
    score_NT = scores("plain", 30, 7, np.random.default_rng(5))
    column_C = np.array([5, 0, 1, 6])
    for held in (1, 2 * 30 * 8, 10**9):
        monkeypatch.setattr(columns, "GROUP_BYTES", held)
        found = list(whole_columns(ArrayAttribution(score_NT, 4), column_C))
        assert [place for place, _ in found] == [0, 1, 2, 3]
        assert np.array_equal(np.array([score_N for _, score_N in found]), score_NT[:, column_C].T)
