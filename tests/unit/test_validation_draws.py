"""Which rows are drawn: functions of seed, share and candidates alone."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from influray.validation import draws

ROWS = np.arange(3, 403, 4)


@given(st.integers(0, 2**40), st.integers(0, 30), st.floats(0.01, 0.99))
def test_a_subset_is_a_share_of_the_rows_ascending_and_the_same_again(seed, number, share):
    found = draws.subset(ROWS, share, seed, number)
    assert len(found) == max(1, int(share * len(ROWS) + 1e-9)) or abs(len(found) - share * len(ROWS)) < 1
    assert (np.diff(found) > 0).all()
    assert np.isin(found, ROWS).all()
    assert found.tolist() == draws.subset(ROWS, share, seed, number).tolist()


def test_subsets_differ_by_number_and_by_seed_and_hold_every_row_alike():
    first = [draws.subset(ROWS, 0.25, 0, number) for number in range(400)]
    assert len({tuple(one) for one in first}) == 400
    assert first[0].tolist() != draws.subset(ROWS, 0.25, 1, 0).tolist()
    count = np.bincount(np.concatenate(first), minlength=ROWS[-1] + 1)[ROWS]
    assert abs(count - 100).max() < 5 * np.sqrt(400 * 0.25 * 0.75)


def test_random_rows_have_as_nearly_the_tokens_as_whole_rows_can():
    token_N = np.random.default_rng(0).integers(5, 60, len(ROWS))
    for number in range(50):
        found = draws.random_rows(ROWS, token_N, 700, 0, number)
        total = token_N[np.searchsorted(ROWS, found)].sum()
        assert abs(total - 700) <= 30, "a row more or less would be nearer"
    assert draws.random_rows(ROWS, token_N, 700, 0, 1).tolist() != draws.random_rows(ROWS, token_N, 700, 0, 2).tolist()
    assert len(draws.random_rows(ROWS, token_N, 1, 0, 0)) == 1
    assert len(draws.random_rows(ROWS, token_N, int(token_N.sum()) + 5, 0, 0)) == len(ROWS)


def test_groups_hold_no_row_twice():
    found = np.concatenate(draws.groups(ROWS, 20, 3, seed=1))
    assert len(found) == len(set(found.tolist())) == 60


def test_candidates_are_all_rows_or_as_many_as_wanted():
    assert draws.candidates(ROWS, 1000, 0) is ROWS
    found = draws.candidates(ROWS, 10, 0)
    assert len(found) == 10
    assert (np.diff(found) > 0).all()


def test_random_scores_say_nothing_of_each_other():
    found = draws.random_scores(2000, 3, seed=4)
    assert found.min() >= 0
    assert found.max() < 1
    assert np.corrcoef(found.T) == pytest.approx(np.eye(3), abs=0.08)
    assert not np.array_equal(found, draws.random_scores(2000, 3, seed=5))
