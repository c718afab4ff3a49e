"""Stability: counts and intervals against plain ways, and halves of targets as a matrix of their own."""

from __future__ import annotations

import math

import numpy as np
import pytest

from influray.evaluation.stability import mean_interval, means_by_label, times_chosen
from influray.validation.stability import halves


def test_times_chosen_counts_a_row_once_a_selection():
    assert times_chosen([[3, 1, 2], [2, 9, 2], [2, 3]]) == {2: 3, 3: 2, 1: 1, 9: 1}
    assert list(times_chosen([[3, 1, 2], [2, 9, 2], [2, 3]])) == [2, 3, 1, 9]


def test_an_interval_covers_the_mean_it_is_of_as_often_as_it_says():
    generator = np.random.default_rng(0)
    for count in (2, 3, 5, 40):
        hits = []
        for _ in range(4000):
            low, high = mean_interval(generator.normal(size=count).tolist())
            hits.append(low <= 0 <= high)
        # Three standard deviations of a share of 4,000 draws.
        assert np.mean(hits) == pytest.approx(0.95, abs=3 * math.sqrt(0.95 * 0.05 / 4000))


def test_one_value_has_no_interval_and_equal_ones_have_one_of_no_width():
    assert mean_interval([1.0]) is None
    assert mean_interval([2.0, 2.0, 2.0]) == (2.0, 2.0)


def test_means_by_label_are_those_of_a_loop():
    generator = np.random.default_rng(1)
    value_nG, label_n = generator.normal(size=(60, 3)), generator.choice(["b", "a", "ü"], 60).tolist()
    found = means_by_label(value_nG, label_n)
    assert list(found) == ["a", "b", "ü"]
    for label, mean_G in found.items():
        lines = [value_nG[i] for i in range(60) if label_n[i] == label]
        assert mean_G == pytest.approx(np.mean(lines, axis=0), abs=1e-12)


def test_halves_split_every_task_and_share_what_cannot_be_split():
    groups = ("a", "b", "a", "c", "a", "b")
    one, other = (half.tolist() for half in halves(groups))
    assert one == [0, 1, 3, 4]
    assert other == [2, 3, 5]
    assert [{groups[j] for j in half} for half in (one, other)] == [{"a", "b", "c"}] * 2
