"""The reductions that look at the whole pool against their definitions, with ties, tails and dead columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError, SelectionProblem
from influray.selectors import columns
from influray.selectors.api import select
from influray.selectors.reductions import RowMerit
from influray.store.attribution import ArrayAttribution
from tests.reference import reduced as reference
from tests.reference.transport import softmax_mass, unbalanced_transport
from tests.unit.test_balanced import KINDS, scores


def reduce(name, score_NT, groups, block_rows=64, weights=None, **options):
    problem = SelectionProblem(ArrayAttribution(score_NT, block_rows), tuple(groups), 1)
    return RowMerit("none", name, options, weights).of(problem)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), small=st.integers(1, 20), weight=st.sampled_from((1, 6))
)
def test_the_best_rank_equals_its_definition(kind, seed, small, weight):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(2, 6))
    score_NT = scores(kind, n, t, rng).astype(np.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_BYTES", 100 * small)
        found = reduce("best_rank", score_NT, ["ab"[j % 2] for j in range(t)], small, {"b": weight})
    value_NC = reference.column_values(score_NT, np.array([(1.0, weight)[j % 2] for j in range(t)]))
    assert np.array_equal(found.merit_N, value_NC.max(axis=1))
    assert found.column_N.tolist() == value_NC.argmax(axis=1).tolist()
    np.testing.assert_allclose(found.tie_N, value_NC.sum(axis=1), rtol=1e-12)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    name=st.sampled_from(("votes", "reciprocal_rank")),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    weight=st.sampled_from((1.0, 0.25, 6.0)),
)
def test_votes_and_reciprocal_ranks_equal_their_definitions(kind, name, seed, small, weight):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(1, 6))
    # On a grid: elsewhere the sum of a task's columns may be rounded differently, and with it a place be another.
    score_NT = np.round(scores(kind, n, t, rng).clip(-1e3, 1e3) * 64) / 64
    groups = ["abc"[g] for g in rng.integers(0, 3, t)]
    weights = {"a": weight} if "a" in groups else {}
    weight_G = np.array([weights.get(task, 1.0) for task in dict.fromkeys(groups)])
    found = reduce(name, score_NT, groups, small, weights)
    merit_N, tie_N = getattr(reference, name)(score_NT, groups, weight_G)
    assert (found.column_N == -1).all(), "a task wins, not a column"
    np.testing.assert_allclose(found.merit_N, merit_N, rtol=1e-12)
    if tie_N is not None:
        np.testing.assert_allclose(found.tie_N, tie_N, rtol=1e-9, atol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    weight=st.sampled_from((1.0, 6.0)),
    temperature=st.sampled_from((0.02, 1.0)),
)
def test_transported_mass_equals_the_plain_softmax(kind, seed, small, weight, temperature):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(2, 6))
    score_NT = scores(kind, n, t, rng).clip(-50, 50) * 0.05
    groups = ["ab"[j % 2] for j in range(t)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_BYTES", 100 * small)
        found = reduce("transport", score_NT, groups, small, {"b": weight}, temperature=temperature)
    expected = softmax_mass(score_NT, temperature, np.array([(1.0, weight)[j % 2] for j in range(t)]))
    np.testing.assert_allclose(np.exp(found.merit_N), expected, rtol=1e-9, atol=1e-300)


@pytest.mark.parametrize("seed", range(3))
def test_transported_mass_ranks_as_the_iterations_of_optimal_transport(seed):
    rng = np.random.default_rng(seed)
    pool, targets = rng.standard_normal((2000, 12)), rng.standard_normal((25, 12))
    pool[:, :3] += 1.5  # rows that many targets like, so that the pool's marginal has something to say
    pool, targets = (one / np.linalg.norm(one, axis=1, keepdims=True) for one in (pool, targets + 0.5))
    cosine_NT = pool @ targets.T
    found = select(cosine_NT, ["a"] * 25, 100, method="uot").rows
    expected = np.argsort(-unbalanced_transport(cosine_NT))[:100]
    assert len(set(found.tolist()) & set(expected.tolist())) >= 98


def test_transported_mass_is_finite_whatever_the_scale_and_shifts_of_a_column_do_not_matter():
    score_NT = np.random.default_rng(0).standard_normal((80, 4))
    far = select(1e4 * score_NT, list("aabb"), 80, method="uot")
    assert np.isfinite(far.merit).all()
    assert len(set(far.merit[4:].tolist())) == 76, "no row's mass may vanish beside that of the four best"
    offset_T = np.array([3, -2, 9, 0])
    found, shifted = (select(one, list("aabb"), 80, method="uot") for one in (score_NT, score_NT + offset_T))
    assert found.rows.tolist() == shifted.rows.tolist()
    np.testing.assert_allclose(found.merit, shifted.merit, atol=1e-9)


def test_equal_votes_go_to_the_row_that_is_higher_over_all_tasks():
    # Every row is among the highest half of one task.
    score_NT = np.array([[3.0, 0.0], [4.0, 0.0], [0.0, 5.0], [0.0, 3.0]])
    found = select(score_NT, ["a", "b"], 4, method="icons", reduction_options={"top_share": 0.5})
    assert found.merit.tolist() == [1, 1, 1, 1]
    assert found.rows.tolist() == [2, 1, 0, 3]


def test_votes_see_no_magnitude_and_reciprocal_ranks_reward_a_first_place():
    rng = np.random.default_rng(0)
    score_NT = rng.standard_normal((100, 3))
    score_NT[0] = [5.0, -4.0, -4.0]  # first for one task, last for two
    score_NT[1] = [1.5, 1.5, 1.5]  # good for all
    groups = ["a", "b", "c"]
    assert select(score_NT, groups, 1, method="icons").rows.tolist() == [1]
    assert 0 in select(score_NT, groups, 4, method="cropi").rows
    assert select(score_NT, groups, 3, method="betr").rows.tolist().count(0) == 1


def test_a_share_tied_to_the_budget_is_the_share_of_that_budget():
    score_NT = np.random.default_rng(4).standard_normal((200, 6))
    for budget, share in ((40, 0.2), (0.2, 0.2), ({"tokens": 500}, 0.25)):
        rows = {"tokens": [10] * 200}
        found, fixed = (
            select(score_NT, list("aabbcc"), budget, method="icons", reduction_options={"top_share": one}, rows=rows)
            for one in ("budget", share)
        )
        assert found.rows.tolist() == fixed.rows.tolist()
        assert found.merit.tolist() == fixed.merit.tolist()
    half = select(score_NT, list("aabbcc"), 100, method="icons", reduction_options={"top_share": "budget"})
    assert half.merit.mean() > 1.5, "half of the rows have the vote of a task, and the best half is taken"


def test_a_best_place_is_not_moved_by_the_height_of_a_tail():
    rng = np.random.default_rng(1)
    score_NT = rng.standard_normal((60, 4))
    found = select(score_NT, list("aabb"), 40, method="betr")
    moved = select(np.sinh(5 * score_NT), list("aabb"), 40, method="betr")
    assert moved.rows.tolist() == found.rows.tolist()
    assert sorted(found.merit.tolist(), reverse=True) == found.merit.tolist()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reduction_options": {"share": 0.1}}, r"reduction_options\.share: 'votes' has no such option.*top_share"),
        ({"reduction_options": [0.1]}, r"options\.reduction_options: found \[0\.1\], expected a mapping"),
        ({"reduction_options": {"top_share": 0}}, r"top_share: found 0, expected a number above 0, at most 1"),
        ({"reduction_options": {"top_share": "half"}}, r"top_share: found 'half', expected .* or budget"),
        ({"reduction_options": {"top_share": True}}, r"top_share: found True"),
        ({"reduction_options": {"top_share": float("nan")}}, r"top_share: found nan"),
        (
            {"reduction": "transport", "reduction_options": {"temperature": 0}},
            r"temperature: found 0, expected a number",
        ),
        ({"reduction": "sum", "reduction_options": {"top_share": 0.1}}, r"'sum' has no such option \(it has none\)"),
    ],
)
def test_a_wrong_option_of_a_reduction_says_what_would_be_right(options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(3), ["a", "b", "c"], 1, method="icons", **options)
