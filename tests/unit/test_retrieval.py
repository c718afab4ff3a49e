"""Retrieval measures: against every order of equal scores, planted answers, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.evaluation.retrieval import measure_retrieval
from tests.reference.tied_retrieval import retrieval_by_orders

rows = st.lists(st.tuples(st.integers(0, 2), st.booleans()), min_size=1, max_size=6).filter(
    lambda found: any(relevant for _, relevant in found)
)


@given(rows, st.integers(1, 7))
@settings(max_examples=60, deadline=None)
def test_measures_are_means_over_all_orders_of_equal_scores(found, k):
    score, relevant = [float(s) for s, _ in found], [r for _, r in found]
    measured = measure_retrieval(np.array(score), np.array(relevant), [k])
    wanted = retrieval_by_orders(score, relevant, k)
    assert (*measured.recall, measured.reciprocal_rank, measured.average_precision) == pytest.approx(wanted, abs=1e-12)


def test_a_perfect_order_finds_all():
    relevant_N = np.arange(50) < 7
    found = measure_retrieval(-np.arange(50.0), relevant_N, [7, 1])
    assert found.recall == (1.0, pytest.approx(1 / 7))
    assert (found.reciprocal_rank, found.average_precision) == (1.0, pytest.approx(1.0))


def test_a_constant_scorer_finds_its_share_whatever_the_order_of_rows():
    relevant_N = np.arange(1000) < 100
    found = measure_retrieval(np.zeros(1000), relevant_N, [250])
    assert found.recall == (pytest.approx(0.25),)
    assert found == measure_retrieval(np.zeros(1000), relevant_N[::-1], [250])


def test_neither_order_of_rows_nor_a_monotone_change_matters():
    generator = np.random.default_rng(0)
    score_N, relevant_N = generator.normal(size=400).round(1), generator.random(400) < 0.1
    order_N = generator.permutation(400)
    found = measure_retrieval(score_N, relevant_N, [10, 100])
    other = measure_retrieval(np.exp(score_N[order_N]), relevant_N[order_N], [10, 100])
    assert other.recall == pytest.approx(found.recall, abs=1e-12)
    assert other.average_precision == pytest.approx(found.average_precision, abs=1e-12)
    assert other.reciprocal_rank == pytest.approx(found.reciprocal_rank, abs=1e-12)


@pytest.mark.parametrize(("score", "relevant", "k"), [([1.0], [False], 1), ([np.nan], [True], 1), ([1.0], [True], 0)])
def test_what_has_no_answer_is_refused(score, relevant, k):
    with pytest.raises(ValueError, match="retrieval needs"):
        measure_retrieval(np.array(score), np.array(relevant), [k])
