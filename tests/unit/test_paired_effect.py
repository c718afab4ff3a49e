"""Effects beside random controls: against plain loops, and how often their intervals hold what is true."""

from __future__ import annotations

import math

import numpy as np
import pytest

from influray.evaluation.paired_effect import paired_effect, student_95
from tests.reference import paired_effect_loop


def test_the_effect_is_that_of_a_plain_loop():
    rng = np.random.default_rng(0)
    for seeds, draws in ((2, 2), (3, 5), (8, 3)):
        treated, control = rng.normal(size=seeds), rng.normal(size=(seeds, draws))
        found = paired_effect(treated, control)
        value, variance, freedom = paired_effect_loop.effect(treated.tolist(), control.tolist())
        half = student_95(max(1, int(freedom + 1e-9))) * math.sqrt(variance)
        assert found.value == pytest.approx(value)
        assert found.interval == pytest.approx((value - half, value + half))


def test_students_t_is_that_of_the_tables():
    for freedom, expected in ((1, 12.706), (2, 4.303), (10, 2.228), (12, 2.179), (30, 2.042), (120, 1.980)):
        assert student_95(freedom) == pytest.approx(expected, abs=2e-3)
    values = [student_95(freedom) for freedom in range(1, 200)]
    assert values == sorted(values, reverse=True)


def test_the_interval_holds_the_truth_about_as_often_as_it_says():
    rng, held, trials = np.random.default_rng(1), 0, 400
    for _ in range(trials):
        seed_S = rng.normal(size=3)  # shared by treated and controls of a seed
        treated = 0.7 + seed_S + rng.normal(scale=0.3, size=3)
        control = seed_S[:, None] + rng.normal(scale=0.5, size=4) + rng.normal(scale=0.3, size=(3, 4))
        low, high = paired_effect(treated, control).interval
        held += low <= 0.7 <= high
    assert held >= 0.92 * trials, "intervals are too narrow"


def test_what_all_seeds_share_does_not_widen_the_interval():
    rng = np.random.default_rng(2)
    treated, control, shift = rng.normal(size=4), rng.normal(size=(4, 3)), 100 * rng.normal(size=4)
    moved = paired_effect(treated + shift, control + shift[:, None])
    assert moved.value == pytest.approx(paired_effect(treated, control).value)
    assert moved.interval == pytest.approx(paired_effect(treated, control).interval)


def test_equal_numbers_have_no_spread_and_too_few_no_interval():
    assert paired_effect(np.ones(2), np.zeros((2, 2))).interval == (1.0, 1.0)
    for shape in ((1, 3), (3, 1)):
        with pytest.raises(ValueError, match="2 of each"):
            paired_effect(np.zeros(shape[0]), np.zeros(shape))
