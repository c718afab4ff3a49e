"""BIDS by heads of columns against the plain loop, on problems made to break it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import DataError, SelectionProblem
from influray.selectors import candidates, heads, held_heads
from influray.selectors.api import select
from influray.selectors.balanced import Balanced
from influray.selectors.normalisers import NORMALISERS, normalise
from influray.store import ranges
from influray.store.attribution import ArrayAttribution
from tests.reference.bids_loop import bids_loop


def scores(kind: str, n: int, t: int, rng: np.random.Generator) -> np.ndarray:
    normal = rng.standard_normal((n, t))
    shared = rng.standard_normal((n, 1))
    return {
        "plain": lambda: normal,
        "ties": lambda: rng.integers(0, 3, (n, t)).astype(float),
        "heavy tails": lambda: rng.standard_cauchy((n, t)),
        "correlated rows": lambda: shared + 1e-3 * normal,
        "one ulp apart": lambda: 1 + np.round(4 * normal) * 2.0**-20,
        "nearly one column": lambda: shared + 1e-7 * normal,
        "mostly zero": lambda: normal * (rng.random((n, t)) < 0.1),
        # Distinct scores that become equal once a mean is subtracted: near 0 floats are far denser than near 1.
        "equal after subtraction": lambda: rng.choice([0.0, -0.0, 1e-45, -1e-45, 1e-30, 2e-20, 1.0, -1.0], (n, t)),
        "dead columns": lambda: np.where(rng.random(t) < 0.5, rng.standard_normal(t), normal),
        "copies": lambda: normal[rng.integers(0, max(1, n // 4), n)],
    }[kind]()


KINDS = (
    "plain",
    "ties",
    "heavy tails",
    "correlated rows",
    "one ulp apart",
    "nearly one column",
    "mostly zero",
    "equal after subtraction",
    "dead columns",
    "copies",
)


def assert_equals_the_loop(score_NT: np.ndarray, budget: int, block_rows: int = 64, **options) -> None:
    source = ArrayAttribution(score_NT, block_rows)
    groups = tuple("ab"[j % 2] for j in range(score_NT.shape[1]))
    try:
        normalised = normalise(options.get("normaliser", "zscore"), source, groups, options.get("task_weights", {}))
    except DataError:
        assert not (source.stats.used_T.any() and options.get("normaliser") in ("none", "zscore"))
        with pytest.raises(DataError, match="constant|equal in more than half"):
            Balanced(**options).select(SelectionProblem(source, groups, budget))
        return
    found = Balanced(**options).select(SelectionProblem(source, groups, budget))
    rows, merit, place = bids_loop(normalised.lines(score_NT), budget, options.get("iterate", True))
    assert found.rows.tolist() == rows.tolist()
    assert np.array_equal(found.merit, merit), "the utilities must be the same to the last digit"
    assert found.column.tolist() == normalised.column_C[place].tolist()


@settings(max_examples=2000, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(1, 30),
    t=st.integers(1, 7),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 1),
    wide=st.booleans(),
    small=st.integers(1, 20),
)
def test_it_equals_the_plain_loop(kind, n, t, seed, share, wide, small):
    rng = np.random.default_rng(seed)
    score_NT = scores(kind, n, t, rng).astype(np.float64 if wide else np.float32)
    with pytest.MonkeyPatch.context() as patch:
        # Samples and groups so small that they mislead and gathered rows run out over and over.
        patch.setattr(heads, "SAMPLE_ROWS", small)
        patch.setattr(held_heads, "GROUP", 1 + small % 3)
        patch.setattr(ranges, "RANGE_ROWS", 1 + seed % 9)
        assert_equals_the_loop(score_NT, max(1, int(share * n)), block_rows=small)


@settings(max_examples=500, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    n=st.integers(10, 120),
    t=st.integers(1, 7),
    seed=st.integers(0, 2**32),
    share=st.floats(0, 0.4),
    wide=st.booleans(),
    small=st.integers(2, 9),
    held=st.integers(1, 40),
    spare=st.sampled_from((1.0, 1.5, 3.0)),
)
def test_candidates_that_run_out_and_are_gathered_anew_give_the_plain_loop(
    kind, n, t, seed, share, wide, small, held, spare
):
    score_NT = scores(kind, n, t, np.random.default_rng(seed)).astype(np.float64 if wide else np.float32)
    with pytest.MonkeyPatch.context() as patch:
        # Samples of a few rows, which mislead, few candidates, and ranges of a few rows.
        patch.setattr(heads, "SAMPLE_ROWS", small)
        patch.setattr(heads, "MOST_SAMPLE_ROWS", small)
        patch.setattr(candidates, "RUN_ROWS", 1 + small % 3)
        patch.setattr(heads, "SPARE", spare)
        patch.setattr(heads, "MAX_HELD", 8 * t * held)
        patch.setattr(held_heads, "WIDTH", small)
        patch.setattr(held_heads, "FEW", small % 4)
        patch.setattr(held_heads, "GROUP", 2)
        patch.setattr(heads, "GROWTH", 2 + small % 4)
        patch.setattr(ranges, "RANGE_ROWS", 1 + small)
        patch.setattr(ranges, "SMALL", 0 if small % 4 else 2**22)
        assert_equals_the_loop(score_NT, max(1, int(share * n)), block_rows=small)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    normaliser=st.sampled_from(sorted(NORMALISERS)),
    iterate=st.booleans(),
    weight=st.sampled_from((None, 0.3, 7.0)),
)
def test_every_option_equals_the_plain_loop(kind, seed, normaliser, iterate, weight):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 50)), int(rng.integers(2, 9))
    weights = {} if weight is None else {"b": weight}
    score_NT = scores(kind, n, t, rng).astype(np.float32)
    budget = int(rng.integers(1, n + 1))
    assert_equals_the_loop(score_NT, budget, normaliser=normaliser, iterate=iterate, task_weights=weights)


@pytest.mark.parametrize("kind", KINDS)
def test_lists_of_the_usual_length_equal_the_plain_loop(kind):
    score_NT = scores(kind, 1500, 12, np.random.default_rng(5)).astype(np.float32)
    assert_equals_the_loop(score_NT, 700, block_rows=256)


def test_a_million_equal_scores_do_not_make_long_lists(monkeypatch):
    longest = []
    original = heads.gather

    def measured(*args):
        found = original(*args)
        longest.append(0 if found is None else len(found[0]))
        return found

    monkeypatch.setattr(heads, "gather", measured)
    score_NT = np.zeros((20000, 2), np.float32)
    score_NT[:3] = np.eye(3, 2)
    score_NT[7, 0] = -1
    assert_equals_the_loop(score_NT, 300)
    assert 0 < max(longest) < 2000, "of equal scores only the first ones are gathered"


@pytest.mark.parametrize("period", [5, 4096 // 4])
def test_a_matrix_that_fools_the_sample_is_still_exact(period):
    # Evenly spaced rows are what the sample sees: here they are the lowest (or the highest) of all.
    for sign in (1, -1):
        score_NT = np.random.default_rng(0).standard_normal((6000, 2)).astype(np.float32)
        score_NT[:: 6000 // period] -= sign * 50
        assert_equals_the_loop(score_NT, 400)


def test_a_smaller_budget_is_a_prefix():
    score_NT = scores("ties", 200, 6, np.random.default_rng(1))
    whole = select(score_NT, list("aabbcc"), 200)
    for budget in (1, 2, 50, 199):
        part = select(score_NT, list("aabbcc"), budget)
        assert part.rows.tolist() == whole.rows[:budget].tolist()
        assert part.merit.tobytes() == whole.merit[:budget].tobytes()


def test_it_is_balanced_where_the_highest_task_mean_is_not():
    # Task "a" has larger scores throughout, and twenty rows that help task "b" alone.
    rng = np.random.default_rng(2)
    score_NT = rng.standard_normal((400, 8)) * [10, 10, 10, 10, 0.1, 0.1, 0.1, 0.1]
    score_NT[:60, :4] += 40
    score_NT[380:, 4:] += 0.7
    groups = ["a"] * 4 + ["b"] * 4
    assert not set(range(380, 400)) & set(select(score_NT, groups, 40, method="less").rows.tolist())
    assert len(set(range(380, 400)) & set(select(score_NT, groups, 40).rows.tolist())) >= 15


def test_without_iteration_it_is_normalised_instance_max():
    score_NT = scores("plain", 100, 7, np.random.default_rng(3))
    groups = list("aaabbbb")
    one = select(score_NT, groups, 60, iterate=False)
    other = select(score_NT, groups, 60, method="normalised_instance_max")
    assert one.rows.tolist() == other.rows.tolist()
    assert one.merit.tobytes() == other.merit.tobytes()
    assert one.column.tolist() == other.column.tolist()


def test_a_heavier_task_wins_more_rows():
    score_NT = scores("plain", 300, 8, np.random.default_rng(4))
    groups = list("aaaabbbb")
    won = [
        int((select(score_NT, groups, 60, task_weights={"b": weight}).column >= 4).sum()) for weight in (0.5, 1, 2, 4)
    ]
    assert won == sorted(won)
    assert won[0] < won[-1]
