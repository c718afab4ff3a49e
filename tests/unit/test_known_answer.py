"""The AUC of expected sources: against all pairs, its invariances, and a planted answer."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.evaluation.known_answer import auc, known_answers, task_scores
from influray.store.attribution import ArrayAttribution
from influray.store.moments import ColumnStats
from tests.reference.auc import auc_by_pairs

few = st.lists(st.integers(-3, 3).map(float), min_size=1, max_size=12)


@given(few, few)
@settings(max_examples=200, deadline=None)
def test_auc_is_the_share_of_pairs_won_with_ties_half(positive, negative):
    found = auc(np.array(positive), np.array(negative))
    assert found == pytest.approx(auc_by_pairs(positive, negative), abs=1e-15)


@given(few, few)
@settings(max_examples=100, deadline=None)
def test_exchanging_the_sides_turns_auc_around(positive, negative):
    one, other = auc(np.array(positive), np.array(negative)), auc(np.array(negative), np.array(positive))
    assert one + other == pytest.approx(1.0, abs=1e-15)


def test_auc_depends_on_the_order_of_the_scores_alone():
    generator = np.random.default_rng(0)
    positive, negative = generator.normal(size=40), generator.normal(size=300)
    found = auc(positive, negative)
    assert auc(np.exp(positive), np.exp(negative)) == found
    assert auc(positive[::-1], generator.permutation(negative)) == found


@pytest.mark.parametrize(("positive", "negative"), [([], [1.0]), ([1.0], []), ([np.nan], [1.0]), ([1.0], [np.inf])])
def test_auc_refuses_an_empty_side_and_scores_without_an_order(positive, negative):
    with pytest.raises(ValueError, match="AUC needs"):
        auc(np.array(positive), np.array(negative))


def matrix(rows: int = 23) -> tuple[np.ndarray, tuple[str, ...], ColumnStats]:
    """Tasks a and b interleaved, c with its only column left out; a left-out column of b holds NaN."""
    generator = np.random.default_rng(1)
    score_NT = generator.normal(size=(rows, 6)) * [1, 5, 0.1, 1, 1, 1] + 3
    score_NT[4, 3] = np.nan
    stats = ColumnStats(score_NT.mean(axis=0), score_NT.std(axis=0), np.array([1, 1, 1, 0, 0, 1], bool))
    return score_NT, ("a", "b", "a", "b", "c", "b"), stats


def test_task_scores_are_the_mean_of_the_standardised_columns_in_use():
    score_NT, groups, stats = matrix()
    tasks, row_N, score_NG = task_scores(ArrayAttribution(score_NT, block_rows=5), groups, stats)
    assert tasks == ("a", "b", "c")
    assert row_N.tolist() == list(range(23))
    for i in range(23):
        for g, columns in enumerate(([0, 2], [1, 5])):
            slow = sum((score_NT[i, j] - stats.mean_T[j]) / stats.std_T[j] for j in columns) / len(columns)
            assert score_NG[i, g] == pytest.approx(slow, rel=1e-12)
    assert np.isnan(score_NG[:, 2]).all()


def test_task_scores_do_not_depend_on_how_the_matrix_is_cut():
    score_NT, groups, stats = matrix()
    whole = task_scores(ArrayAttribution(score_NT, block_rows=23), groups, stats)[2]
    for block_rows in (1, 4, 22):
        cut = task_scores(ArrayAttribution(score_NT, block_rows=block_rows), groups, stats)[2]
        np.testing.assert_allclose(cut, whole, rtol=1e-13)


def test_rows_of_an_expected_source_that_stand_first_give_one():
    score_NG = np.array([[3.0, 0.0], [2.0, 0.0], [1.0, 0.0], [0.0, 0.0]])
    sources = ["maths", "maths", "chat", "chat"]
    expected = {"sums": ("maths", "absent"), "talk": ("chat",), "other": ()}
    sums, talk = known_answers(("sums", "talk"), score_NG, sources, expected, {"sums": 3, "talk": 2})
    assert (sums.auc, sums.expected_rows, sums.other_rows, sums.columns) == (1.0, 2, 2, 3)
    assert sums.absent == ("absent",)
    assert talk.auc == 0.5, "equal scores count half"


def test_a_comparison_without_two_sides_or_columns_has_no_auc():
    score_NG = np.array([[3.0, np.nan], [2.0, np.nan]])
    expected = {"everything": ("a", "b"), "unused": ("a",)}
    everything, unused = known_answers(
        ("everything", "unused"), score_NG, ["a", "b"], expected, {"everything": 1, "unused": 0}
    )
    assert everything.auc is None, "no row is left to compare with"
    assert unused.auc is None, "no column of the task is in use"


def test_a_task_that_expects_nothing_is_not_checked():
    assert known_answers(("a",), np.zeros((2, 1)), ["x", "y"], {}, {"a": 1}) == []
