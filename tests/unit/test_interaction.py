"""Lazy choice by interaction against the plain greedy one, ties and all, and what its step means."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError, DataError
from influray.selectors import interaction
from influray.selectors.api import select
from influray.selectors.normalisers import normalise
from influray.selectors.task_scores import task_means
from influray.store.attribution import ArrayAttribution
from tests.reference import interaction as reference
from tests.unit.test_balanced import KINDS, scores


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    name=st.sampled_from(("none", "zscore", "rank")),
    weight=st.sampled_from((1, 5)),
    over=st.sampled_from(("targets", "tasks")),
    step=st.sampled_from(("auto", 0.3)),
)
def test_it_equals_the_plain_greedy(kind, seed, small, name, weight, over, step):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 60)), int(rng.integers(2, 7))
    score_NT = scores(kind, n, t, rng).astype(rng.choice([np.float32, np.float64]))
    source, groups = ArrayAttribution(score_NT, small), ["ab"[j % 2] for j in range(t)]
    budget = int(rng.integers(1, n + 1))
    options = {"method": "interaction", "normaliser": name, "task_weights": {"b": weight}, "over": over, "eta": step}
    try:
        normalised = normalise(name, source, groups, {"b": weight})
    except DataError:
        with pytest.raises(DataError, match="constant"):
            select(source, groups, budget, **options)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(interaction, "FIRST_ROWS", 1 + small % 5)
        patch.setattr(interaction, "PATIENCE", 1 + small % 3)
        found = select(source, groups, budget, **options)
    z_NC, weight_C, used = normalised.lines(score_NT), normalised.weight_C, [groups[j] for j in normalised.column_C]
    if over == "tasks":
        tasks = list(dict.fromkeys(used))
        z_NC, weight_C = (
            task_means(np.ascontiguousarray(z_NC.T), used).T,
            weight_C[[used.index(task) for task in tasks]],
        )
    eta = reference.step(z_NC, 0.5, budget) if step == "auto" else step
    rows, gains, places = reference.interaction(z_NC, weight_C, eta, budget)
    assert found.rows.tolist() == rows
    assert found.merit.tolist() == gains
    if over == "targets":
        assert found.column.tolist() == normalised.column_C[places].tolist()
    else:
        assert [groups[j] for j in found.column] == [tasks[place] for place in places]


def test_it_looks_at_few_rows_and_still_equals_the_plain_greedy():
    score_NT = scores("copies", 1500, 12, np.random.default_rng(0)).astype(np.float32) + 0.5
    source, looked = ArrayAttribution(score_NT), []
    gather = source.gather
    source.gather = lambda rows: looked.append(len(rows)) or gather(rows)  # counts, and does what it did
    found = select(source, ["a"] * 12, 90, method="interaction")
    z_NC = score_NT.astype(np.float64)
    rows, *_ = reference.interaction(z_NC, np.ones(12), reference.step(z_NC, 0.5, 90), 90)
    assert found.rows.tolist() == rows
    assert sum(looked) < 1500 * 90 / 4, "most bounds rule a row out without reading it"


def test_of_two_tasks_the_one_that_is_served_makes_room_for_the_other():
    score_NT = np.zeros((40, 2))
    score_NT[:20, 0], score_NT[20:, 1] = 2.0, 1.0
    by_mean = select(score_NT, ["a", "b"], 20, method="interaction", strength=0)
    found = select(score_NT, ["a", "b"], 20, method="interaction", strength=1)
    assert (by_mean.rows < 20).all()
    # eta = 1 / 20. After p rows of a and q = 20 - p of b they count alike where 2 (1 - p / 10) = 1 - q / 20: p = 8.
    assert (found.rows < 20).sum() in (7, 8, 9)
    assert (np.diff(found.merit) <= 0).all(), "nothing harms, so what a row adds only falls"


@pytest.mark.parametrize("strength", [0.5, 1.0])
def test_of_an_average_target_as_much_is_left_as_the_strength_says(strength):
    score_NT = np.random.default_rng(3).standard_normal((300, 8)) + 0.3
    found = select(score_NT, ["a"] * 8, 60, method="interaction", strength=strength)
    eta = reference.step(score_NT, strength, 60)
    left_C = 1 - eta * score_NT[found.rows].sum(axis=0)
    assert 1 - strength - 1e-12 <= left_C.mean() < 1


def test_no_unit_matters_and_with_a_number_a_smaller_budget_is_a_prefix():
    score_NT = np.random.default_rng(4).standard_normal((200, 6)) + 0.2
    found = select(score_NT, ["a"] * 6, 50, method="interaction")
    assert select(1024 * score_NT, ["a"] * 6, 50, method="interaction").rows.tolist() == found.rows.tolist()
    whole = select(score_NT, ["a"] * 6, 50, method="interaction", eta=0.02)
    assert select(score_NT, ["a"] * 6, 20, method="interaction", eta=0.02).rows.tolist() == whole.rows[:20].tolist()


def test_where_no_row_helps_on_average_the_least_harmful_come_first():
    score_NT = -np.arange(1.0, 11)[:, None] * np.ones((10, 3))
    assert select(score_NT, ["a"] * 3, 4, method="interaction").rows.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eta": 0}, r"options\.eta: found 0"),
        ({"eta": "half"}, r"options\.eta: found 'half'"),
        ({"strength": -1}, r"options\.strength: found -1, expected a number of 0 or more"),
        ({"over": "rows"}, r"options\.over: found 'rows'"),
        ({"eta": 0.1, "strength": 1.0}, r"options\.strength: 1 is a part of the step that eta: auto takes, and eta is"),
        ({"task_weights": {"a": 0}}, r"options\.task_weights\.a: found 0, expected a number above 0"),
    ],
)
def test_wrong_options_are_told(options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(4), ["a"] * 4, 2, method="interaction", **options)
