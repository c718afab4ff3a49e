"""Overlap of selections against sums written out, and the laws of a measure of likeness."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.evaluation.overlap import jaccard, rank_biased_overlap, shares
from tests.reference.rank_biased_overlap import by_sets

RANKINGS = st.lists(st.integers(0, 30), unique=True, max_size=25)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(RANKINGS, RANKINGS, st.floats(0.05, 0.99))
def test_it_is_the_published_sum(one, other, persistence):
    found = rank_biased_overlap(one, other, persistence)
    assert found == pytest.approx(rank_biased_overlap(other, one, persistence))
    assert -1e-12 <= found <= 1 + 1e-12
    if one and other:
        assert found == pytest.approx(by_sets(one, other, persistence))


def test_equal_orders_are_one_and_strangers_zero():
    assert rank_biased_overlap(range(50), range(50)) == pytest.approx(1)
    assert rank_biased_overlap(range(50), range(50, 90)) == pytest.approx(0)
    assert rank_biased_overlap([], []) == 1
    assert rank_biased_overlap([1], []) == 0


def test_a_swap_at_the_top_costs_more_than_one_at_the_end():
    order = list(range(20))
    top, end = order.copy(), order.copy()
    top[0], top[1] = 1, 0
    end[18], end[19] = 19, 18
    assert rank_biased_overlap(order, top, 0.9) < rank_biased_overlap(order, end, 0.9) < 1


def test_a_prefix_agrees_with_the_whole():
    assert rank_biased_overlap(range(30), range(100)) == pytest.approx(1)


@pytest.mark.parametrize("persistence", [0, 1, -0.5, 2])
def test_wrong_arguments_are_refused(persistence):
    with pytest.raises(ValueError, match="persistence"):
        rank_biased_overlap([1], [1], persistence)
    with pytest.raises(ValueError, match="every item once"):
        rank_biased_overlap([1, 1], [1, 2])


def test_jaccard_counts_what_both_hold():
    assert jaccard([1, 2, 3], [2, 3, 4, 5]) == 2 / 5
    assert jaccard(np.array([1, 2]), np.array([2, 1])) == 1
    assert jaccard([], []) == 1
    assert jaccard([1], []) == 0


def test_shares_fall_and_sum_to_one():
    found = shares(["b", "a", "c", "a", "b", "d"])
    assert list(found.items()) == [("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 6), ("d", 1 / 6)]
    assert shares([]) == {}
