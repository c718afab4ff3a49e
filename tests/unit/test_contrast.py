"""The contrast of two groups of records: against a plain loop, and planted differences."""

from __future__ import annotations

import math
import statistics

import numpy as np
import pytest

from influray.evaluation.contrast import contrast
from influray.evaluation.paired_effect import student_95


def welch(first: list[float], second: list[float]) -> tuple[float, float]:
    parts = [(statistics.variance(group) / len(group), len(group) - 1) for group in (first, second)]
    total = sum(error for error, _ in parts)
    freedom = total**2 / sum(error**2 / free for error, free in parts)
    return statistics.fmean(first) - statistics.fmean(second), student_95(int(freedom + 1e-9)) * math.sqrt(total)


def test_contrasts_are_those_of_a_loop_with_welchs_interval():
    generator = np.random.default_rng(0)
    first_Fn, second_Pn = generator.normal(size=(5, 12)), 3 * generator.normal(size=(9, 12)) + 1
    found = contrast(first_Fn, second_Pn)
    for i in range(12):
        value, half = welch(first_Fn[:, i].tolist(), second_Pn[:, i].tolist())
        assert found.value_n[i] == pytest.approx(value)
        assert found.half_n[i] == pytest.approx(half)


def test_an_interval_covers_what_it_should_as_often_as_it_says():
    generator = np.random.default_rng(1)
    found = contrast(generator.normal(size=(4, 20_000)), 2 * generator.normal(size=(7, 20_000)))
    covered = (np.abs(found.value_n) <= found.half_n).mean()
    assert 0.945 < covered < 0.98  # freedom is rounded down: on the wide side


def test_without_a_second_group_the_first_is_compared_with_nothing():
    first_Fn = np.array([[1.0, 2.0], [3.0, 2.0]])
    found = contrast(first_Fn, np.zeros((0, 2)))
    assert found.value_n.tolist() == [2.0, 2.0]
    assert found.half_n.tolist() == [pytest.approx(student_95(1) * 1.0), 0.0]


def test_single_records_have_no_interval_and_none_are_refused():
    assert np.isnan(contrast(np.ones((1, 3)), np.ones((4, 3))).half_n).all()
    with pytest.raises(ValueError, match="needs a record"):
        contrast(np.zeros((0, 3)), np.ones((4, 3)))
