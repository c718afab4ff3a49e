"""Round robin, layers and quotas against their loops, on problems with ties, tails and dead columns."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError, DataError
from influray.selectors import columns, heads, layers
from influray.selectors.api import select
from influray.selectors.normalisers import normalise
from influray.selectors.quota import shares
from influray.store.attribution import ArrayAttribution
from tests.reference import turns as reference
from tests.reference.reduced import means
from tests.unit.test_balanced import KINDS, scores


def problem(kind: str, seed: int):
    rng = np.random.default_rng(seed)
    n, t = int(rng.integers(1, 40)), int(rng.integers(1, 7))
    groups = ["abc"[g] for g in rng.integers(0, 3, t)]
    return scores(kind, n, t, rng).astype(np.float32), groups, int(rng.integers(1, n + 1))


def grid(score_NT: np.ndarray) -> np.ndarray:
    # Elsewhere the sum of a task's columns may be rounded differently than in the reference.
    return np.round(score_NT.clip(-1e3, 1e3) * 64).astype(np.float64) / 64


def live_tasks(task_NG: np.ndarray) -> np.ndarray:
    spread_G = task_NG.max(axis=0) > task_NG.min(axis=0)
    return np.flatnonzero(spread_G if spread_G.any() else ~spread_G)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    name=st.sampled_from(("zscore", "none", "rank")),
)
def test_a_round_over_instances_equals_the_plain_loop(kind, seed, small, name):
    score_NT, groups, budget = problem(kind, seed)
    source = ArrayAttribution(score_NT, small)
    try:
        normalised = normalise(name, source, groups, {})
    except DataError:
        with pytest.raises(DataError, match="constant"):
            select(source, groups, budget, method="rr", normaliser=name)
        return
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(heads, "MIN_RANK", 1 + small % 4)
        patch.setattr(heads, "SAMPLE_ROWS", small)
        patch.setattr(heads, "MAX_HELD", 8 * score_NT.shape[1] * small)
        found = select(source, groups, budget, method="rr", normaliser=name)
    z_NC = normalised.lines(score_NT)
    rows, places = reference.round_robin(z_NC, budget)
    assert found.rows.tolist() == rows
    assert found.column.tolist() == normalised.column_C[places].tolist()
    assert np.array_equal(found.merit, z_NC[rows, places])


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS),
    seed=st.integers(0, 2**32),
    small=st.integers(1, 20),
    name=st.sampled_from(("max", "mean")),
    taken=st.sampled_from(("next", "lost")),
)
def test_a_round_over_tasks_equals_the_plain_loop(kind, seed, small, name, taken):
    score_NT, groups, budget = problem(kind, seed)
    score_NT = grid(score_NT)
    member = [[j for j, g in enumerate(groups) if g == task] for task in dict.fromkeys(groups)]
    task_NG = np.stack([getattr(score_NT[:, m], name)(axis=1) for m in member], axis=1)
    live_G = live_tasks(task_NG)
    source = ArrayAttribution(score_NT, small)
    found = select(source, groups, budget, method="rr_tasks", task_score=name, taken=taken)
    turns = {"next": reference.round_robin, "lost": reference.losing_round_robin}[taken]
    rows, places = turns(task_NG[:, live_G], budget)
    assert found.rows.tolist() == rows
    assert found.merit.tolist() == task_NG[rows, live_G[places]].tolist()
    winners = [member[live_G[p]] for p in places]
    expected = [
        m[int(score_NT[row, m].argmax())] if name == "max" else -1 for row, m in zip(rows, winners, strict=True)
    ]
    assert found.column.tolist() == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), small=st.integers(1, 20), whole=st.sampled_from((1, 4)))
def test_layers_equal_the_plain_loop(kind, seed, small, whole):
    score_NT, groups, budget = problem(kind, seed)
    source = ArrayAttribution(score_NT, small)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(columns, "GROUP_BYTES", 100 * small)
        patch.setattr(layers, "MIN_DEPTH", 1)  # so that lists of few rows are made, and made again deeper
        patch.setattr(layers, "WHOLE", whole)
        found = select(source, groups, budget, method="layers", normaliser="none")
        assert found.rows.tolist() == reference.layers(score_NT, score_NT, budget)
        assert np.array_equal(found.merit, score_NT[found.rows, found.column])
        if source.stats.used_T.any():
            normalised = normalise("zscore", source, groups, {})
            raw_NC = score_NT[:, normalised.column_C]
            expected = reference.layers(raw_NC, normalised.lines(score_NT), budget)
            assert select(source, groups, budget, method="layers").rows.tolist() == expected


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    kind=st.sampled_from(KINDS), seed=st.integers(0, 2**32), small=st.integers(1, 20), weight=st.sampled_from((1, 3))
)
def test_quotas_choose_what_the_plain_rule_does(kind, seed, small, weight):
    score_NT, groups, budget = problem(kind, seed)
    score_NT = grid(score_NT)
    mean_NG = means(score_NT, groups)
    live_G = live_tasks(mean_NG)
    weight_G = np.array([weight if task == "a" else 1 for task in dict.fromkeys(groups)])[live_G]
    found = select(
        ArrayAttribution(score_NT, small),
        groups,
        budget,
        method="quota",
        task_weights={"a": weight} if "a" in groups else {},
    )
    assert set(found.rows.tolist()) == reference.quota(mean_NG[:, live_G], shares(budget, weight_G), budget)


def test_shares_are_whole_in_proportion_and_sum_to_the_budget():
    assert shares(10, np.ones(3)) == [4, 3, 3]
    assert shares(2, np.ones(3)) == [1, 1, 0]
    assert shares(7, np.array([1.0, 5.0, 1.0])) == [1, 5, 1]
    for budget in range(1, 200):
        for tasks in (1, 3, 7, 10, 49):
            found = shares(budget, np.ones(tasks))
            assert sum(found) == budget
            assert max(found) - min(found) <= 1


def test_every_task_has_its_quota_where_the_highest_task_mean_gives_one_task_all():
    rng = np.random.default_rng(0)
    score_NT = rng.standard_normal((300, 4)) * [9, 9, 0.1, 0.1]
    best_b = set(np.argsort(-score_NT[:, 2:].mean(axis=1))[:20].tolist())
    assert best_b <= set(select(score_NT, list("aabb"), 40, method="quota").rows.tolist())
    assert len(best_b & set(select(score_NT, list("aabb"), 40, method="less").rows.tolist())) < 10


def test_a_task_whose_row_is_taken_may_lose_its_turn():
    score_NT = np.array([[9.0, 9.0], [8.0, 1.0], [7.0, 2.0], [1.0, 8.0], [0.0, 0.0]])
    assert select(score_NT, ["a", "b"], 4, method="rr_tasks").rows.tolist() == [0, 3, 1, 2]
    # b's best is row 0, which a has; then each has its second, and a its third.
    assert select(score_NT, ["a", "b"], 4, method="rr_tasks", taken="lost").rows.tolist() == [0, 1, 3, 2]
    # A row that a limit bars costs nothing: b goes on to its own best at once.
    found = select(
        score_NT,
        ["a", "b"],
        3,
        method="rr_tasks",
        taken="lost",
        rows={"id": list("vwxyz")},
        constraints={"exclude": ["v"]},
    )
    assert found.rows.tolist() == [1, 3, 2]


def test_a_row_that_all_tasks_want_is_chosen_once_and_counts_for_each():
    score_NT = np.array([[9.0, 9.0], [8.0, 1.0], [7.0, 2.0], [1.0, 8.0], [0.0, 0.0]])
    # Shares of two: rows 0 and 1, and rows 0 and 3. The fourth is spent in turn, beginning with task a.
    assert select(score_NT, ["a", "b"], 4, method="quota").rows.tolist() == [0, 1, 3, 2]
    # In turns of round robin task b does not wait for its share: it takes row 3 at once.
    assert select(score_NT, ["a", "b"], 4, method="rr").rows.tolist() == [0, 3, 1, 2]
    assert select(score_NT, ["a", "b"], 4, method="layers", normaliser="none").rows.tolist() == [0, 1, 3, 2]


@pytest.mark.parametrize(
    ("method", "options", "message"),
    [
        (
            "round_robin",
            {"over": "task"},
            r"options\.over: found 'task', expected instances or tasks; did you mean 'tasks'\?",
        ),
        ("round_robin", {"taken": "skip"}, r"options\.taken: found 'skip', expected next or lost"),
        ("rr", {"taken": "lost"}, r"options\.taken: only tasks can lose a turn; set options\.over: tasks"),
        ("round_robin", {"task_score": "sum"}, r"options\.task_score: found 'sum', expected mean or max"),
        ("quota", {"task_weights": {"z": 1.0}}, r"no column has the task 'z'"),
        ("layers", {"normaliser": "z"}, r"options\.normaliser: "),
    ],
)
def test_a_wrong_option_says_what_would_be_right(method, options, message):
    with pytest.raises(ConfigError, match=message):
        select(np.eye(4), list("aabb"), 2, method=method, **options)
