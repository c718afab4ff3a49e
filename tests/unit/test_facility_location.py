"""Lazy facility location against the plain greedy one, ties and all, and what f is."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import DataError
from influray.selectors import facility_location
from influray.selectors.api import select
from influray.selectors.normalisers import normalise
from influray.store.attribution import ArrayAttribution
from tests.reference import coverage as reference
from tests.unit.test_balanced import KINDS, scores


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    name=st.sampled_from(("zscore", "none", "rank", "minmax")),
    weight=st.sampled_from((1, 5)),
)
def test_it_equals_the_plain_greedy(kind, seed, small, name, weight):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 60)), int(rng.integers(2, 7))
    score_NT = scores(kind, n, t, rng).astype(rng.choice([np.float32, np.float64]))
    source, groups, budget = (
        ArrayAttribution(score_NT, small),
        ["ab"[j % 2] for j in range(t)],
        int(rng.integers(1, n + 1)),
    )
    options = {"method": "facility_location", "normaliser": name, "task_weights": {"b": weight}}
    try:
        normalised = normalise(name, source, groups, {"b": weight})
    except DataError:
        with pytest.raises(DataError, match="constant"):
            select(source, groups, budget, **options)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(facility_location, "WIDTH", 1 + small % 5)
        patch.setattr(facility_location, "PATIENCE", 1 + small % 7)
        found = select(source, groups, budget, **options)
    rows, gains, places = reference.facility_location(normalised.lines(score_NT), budget)
    assert found.rows.tolist() == rows
    assert found.merit.tolist() == gains
    assert found.column.tolist() == normalised.column_C[places].tolist()


def test_blocks_of_the_usual_width_equal_the_plain_greedy():
    score_NT = scores("copies", 1500, 12, np.random.default_rng(0)).astype(np.float32)
    source = ArrayAttribution(score_NT)
    found = select(source, ["a"] * 12, 90, method="facility_location")
    z_NC = normalise("zscore", source, ["a"] * 12, {}).lines(score_NT)
    assert found.rows.tolist() == reference.facility_location(z_NC, 90)[0]


def test_the_merits_of_the_first_round_add_up_to_f():
    z_NC = np.random.default_rng(1).standard_normal((200, 15))
    found = select(z_NC, ["a"] * 15, 6, method="facility_location", normaliser="none")
    for count in range(1, 7):
        assert sum(found.merit[:count]) == pytest.approx(reference.value(z_NC, found.rows[:count].tolist()))
    assert (np.diff(found.merit) <= 0).all(), "f is submodular: what is added falls"


def test_when_every_column_is_covered_it_begins_anew_and_harm_comes_last():
    z_NC = np.array([[5.0, 0.0], [0.0, 4.0], [3.0, 0.0], [0.0, 2.0], [-1.0, -3.0], [-9.0, -0.5]])
    found = select(z_NC, ["a", "b"], 6, method="facility_location", normaliser="none")
    assert found.rows.tolist() == [0, 1, 2, 3, 5, 4]
    assert found.merit.tolist() == [5, 4, 3, 2, 0, 0]
    assert found.column.tolist() == [0, 1, 0, 1, 1, 0]


def test_a_copy_of_a_chosen_row_adds_nothing_where_balanced_selection_takes_it_again():
    rng = np.random.default_rng(2)
    z_NC = rng.standard_normal((100, 8))
    z_NC[50:] = z_NC[:50]
    rows = select(z_NC, ["a"] * 8, 8, method="facility_location").rows % 50
    assert len(set(rows[:5].tolist())) == 5
