"""Limits of a selection: what is chosen keeps to them, is the method's own order otherwise, and no limit is quiet."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError, DataError
from influray.registry import METHODS, SELECTORS
from influray.selectors.api import select
from influray.selectors.row_tasks import row_tasks
from influray.store.attribution import ArrayAttribution
from influray.store.feature_rows import ArrayFeatures
from tests.reference.limited_choice import balanced_under_limits, choose_in_order

GROUPS = list("aabbc")
ALL = sorted({*SELECTORS, *METHODS})


def problem(seed: int, n: int = 60):
    rng = np.random.default_rng(seed)
    score_NT = rng.standard_normal((n, 5)) * [1, 2, 3, 1, 5]
    rows = {
        "id": [f"r{i}" for i in range(n)],
        "source": [("web", "book", "code")[i] for i in rng.integers(0, 3, n)],
        "tokens": rng.integers(1, 40, n),
    }
    return score_NT, rows


def standardised(score_NT: np.ndarray) -> np.ndarray:
    return (score_NT - score_NT.mean(0)) / score_NT.std(0)


@pytest.mark.parametrize("method", ALL)
def test_every_method_keeps_to_every_limit_at_once(method):
    score_NT, rows = problem(0)
    task_N = row_tasks(ArrayAttribution(score_NT), GROUPS)
    constraints = {
        "include": ["r7", "r3"],
        "exclude": ["r10", "r11", "r12"],
        "sources": {"web": {"min": 6, "max": 9}, "code": {"max": 0.25}},
        "tasks": {"c": {"max": 6}, "b": {"min": 0.2}},
    }
    found = select(score_NT, GROUPS, 20, method=method, rows=rows, constraints=constraints, seed=3)
    chosen = found.rows.tolist()
    assert len(chosen) == len(set(chosen)) == len(found.merit) == len(found.column) == 20
    assert chosen[:2] == [3, 7], "what must be in comes first"
    assert not {10, 11, 12} & set(chosen)
    sources, tasks = ([values[row] for row in chosen] for values in (rows["source"], task_N))
    assert 6 <= sources.count("web") <= 9
    assert sources.count("code") <= 5
    assert tasks.count("c") <= 6
    assert tasks.count("b") >= 4


@pytest.mark.parametrize("method", ALL)
def test_limits_that_bind_nothing_change_nothing(method):
    score_NT, rows = problem(1)
    free = select(score_NT, GROUPS, 20, method=method, rows=rows, seed=3)
    loose = {"sources": {"web": {"max": 60}}, "tasks": {"a": {"min": 0}}, "near_duplicates": 1.0}
    features = np.eye(60)
    bound = select(score_NT, GROUPS, 20, method=method, rows=rows, constraints=loose, features=features, seed=3)
    assert bound.rows.tolist() == free.rows.tolist()
    assert bound.merit.tobytes() == free.merit.tobytes()
    assert bound.column.tolist() == free.column.tolist()


@pytest.mark.parametrize("method", ALL)
def test_a_budget_in_tokens_is_filled_and_never_overshot(method):
    score_NT, rows = problem(2)
    for tokens in (40, 200, 10_000):
        found = select(score_NT, GROUPS, {"tokens": tokens}, method=method, rows=rows, seed=3)
        used = int(rows["tokens"][found.rows].sum())
        left = np.setdiff1d(np.arange(60), found.rows)
        assert used <= tokens
        assert not len(left) or rows["tokens"][left].min() > tokens - used, "another row would have fitted"


@settings(max_examples=300, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 2**32),
    n=st.integers(3, 9),
    size=st.integers(1, 9),
    sources=st.dictionaries(st.sampled_from("xyz"), st.tuples(st.integers(0, 3), st.none() | st.integers(0, 4))),
    tasks=st.dictionaries(st.sampled_from("ab"), st.tuples(st.integers(0, 3), st.none() | st.integers(0, 4))),
)
def test_a_row_is_passed_over_only_where_no_selection_with_it_keeps_to_the_bounds(seed, n, size, sources, tasks):
    rng = np.random.default_rng(seed)
    size = min(size, n)
    # The last three rows see to it that every source is there; a row's task is its highest standardised column.
    kinds = {"sources": [str(s) for s in rng.choice(list("xyz"), n)]}
    kinds["sources"][-3:] = list("xyz")
    score_NT = rng.standard_normal((n, 4))
    groups = list("aabb")
    kinds["tasks"] = row_tasks(ArrayAttribution(score_NT), groups)
    bounds = {"sources": sources, "tasks": {t: b for t, b in tasks.items() if t in kinds["tasks"]}}
    if any(high is not None and high < low for of in bounds.values() for low, high in of.values()):
        return
    forced, excluded = (rng.choice(n, 2, replace=False)[: rng.integers(0, 2)].tolist() for _ in range(2))
    if set(forced) & set(excluded) or len(forced) > size:
        return
    order = np.argsort(-score_NT.sum(1), kind="stable").tolist()
    expected = choose_in_order(order, size, kinds, bounds, forced, excluded)
    constraints = {
        "include": [f"r{i}" for i in forced],
        "exclude": [f"r{i}" for i in excluded],
        **{kind: {k: {"min": lo, "max": hi} for k, (lo, hi) in of.items()} for kind, of in bounds.items()},
    }
    rows = {"id": [f"r{i}" for i in range(n)], "source": kinds["sources"]}

    def call():
        return select(score_NT, groups, size, method="sum", rows=rows, constraints=constraints)

    if expected is None:
        with pytest.raises(ConfigError, match="constraints"):
            call()
    else:
        assert call().rows.tolist() == expected


@pytest.mark.parametrize("seed", range(6))
def test_bids_under_limits_equals_the_plain_loop_under_limits(seed):
    score_NT, rows = problem(seed, n=120)
    z_NC = standardised(score_NT)
    tokens, source = rows["tokens"], np.array(rows["source"])
    features = np.random.default_rng(seed).standard_normal((40, 16))[np.arange(120) % 40] + 1e-4
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)

    def fits(chosen, row):
        return (
            tokens[chosen].sum() + tokens[row] <= 900
            and (source[row] != "web" or (source[chosen] == "web").sum() < 8)
            and not any(unit[row] @ unit[k] >= 0.9999 for k in chosen)
        )

    expected, merit = balanced_under_limits(z_NC, None, fits, [5, 9])
    constraints = {"include": ["r9", "r5"], "sources": {"web": {"max": 8}}, "near_duplicates": 0.9999}
    found = select(score_NT, GROUPS, {"tokens": 900}, rows=rows, constraints=constraints, features=features)
    assert found.rows.tolist() == expected
    np.testing.assert_allclose(found.merit, merit, rtol=1e-9)


@settings(max_examples=100, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), threshold=st.floats(0.05, 1.0), dimension=st.integers(1, 70))
def test_near_duplicates_are_found_exactly(seed, threshold, dimension):
    rng = np.random.default_rng(seed)
    base = rng.standard_normal((8, dimension))
    features = base[rng.integers(0, 8, 40)] + rng.choice([0, 1e-3, 0.1, 1.0], (40, 1)) * rng.standard_normal(
        (40, dimension)
    )
    unit = ArrayFeatures(features, 40).gather(np.arange(40)).astype(np.float64)
    cosine = unit @ unit.T
    score_N1 = -np.arange(40.0)[:, None]
    expected: list[int] = []
    for row in range(40):
        if not any(cosine[row, k] >= threshold for k in expected):
            expected.append(row)
    budget = len(expected)
    found = select(score_N1, ["a"], budget, method="sum", features=features, constraints={"near_duplicates": threshold})
    assert found.rows.tolist() == expected
    if budget < 40:
        with pytest.raises(ConfigError, match=r"only \d+ rows can be chosen.*near_duplicates"):
            select(
                score_N1, ["a"], budget + 1, method="sum", features=features, constraints={"near_duplicates": threshold}
            )


def test_caps_keep_the_prefix_property():
    score_NT, rows = problem(5)
    limits = {"sources": {"web": {"max": 5}}, "tasks": {"c": {"max": 4}}}
    whole = select(score_NT, GROUPS, 30, rows=rows, constraints={"sources": limits["sources"]})
    for budget in (1, 7, 29):
        part = select(score_NT, GROUPS, budget, rows=rows, constraints={"sources": limits["sources"]})
        assert part.rows.tolist() == whole.rows[:budget].tolist()


def test_several_checkpoints_count_alike_in_a_cosine():
    rng = np.random.default_rng(0)
    one, two = rng.standard_normal((6, 4)), rng.standard_normal((6, 3))
    both = ArrayFeatures([one, two], 6).gather(np.arange(6))
    np.testing.assert_allclose(np.linalg.norm(both, axis=1), 1, rtol=1e-6)
    whole = np.concatenate([one, two], axis=1)
    whole /= np.linalg.norm(whole, axis=1, keepdims=True)
    np.testing.assert_allclose(both @ both.T, whole @ whole.T, atol=1e-6)


WRONG = [
    ({"include": ["zzz"]}, r"constraints\.include: the id 'zzz' is not among the rows"),
    ({"include": ["r1"], "exclude": ["r1"]}, r"constraints\.exclude: the id 'r1' stands in constraints\.include too"),
    (
        {"include": [f"r{i}" for i in range(30)]},
        r"constraints\.include: 30 rows must be in, more than the budget of 20",
    ),
    ({"sources": {"wep": {"max": 3}}}, r"constraints\.sources\.wep: no row of the matrix has it; did you mean 'web'"),
    ({"tasks": {"d": {"max": 3}}}, r"constraints\.tasks\.d: no column has this task"),
    ({"sources": {"web": {"min": 50}}}, r"constraints\.sources\.web\.min: 50, but only \d+ of its rows can be chosen"),
    ({"sources": {"web": {"min": 9, "max": 5}}}, r"constraints\.sources\.web\.max: 5 rows, less than its min of 9"),
    (
        {"sources": {"web": {"min": 11}, "book": {"min": 11}}},
        r"minimums ask for 22 more rows, and the budget has .* 20",
    ),
    ({"sources": {s: {"max": 2} for s in ("web", "book", "code")}}, r"the maximums leave room for 6 rows, and 20"),
    ({"sources": {"web": {"max": -1}}}, r"sources\.web\.max: must be a number of examples"),
    ({"sources": {"web": {"maxi": 1}}}, r"sources\.web\.maxi: unknown key; did you mean 'max'"),
    ({"near_duplicates": 0.9}, r"constraints\.near_duplicates: needs the features"),
    ({"near_duplicates": 2}, r"near_duplicates"),
    ({"exclude": "no-such-file.txt"}, r"constraints\.exclude: the file of ids no-such-file\.txt cannot be read"),
]


@pytest.mark.parametrize(("constraints", "message"), WRONG)
def test_limits_that_cannot_be_kept_say_which_and_why(constraints, message):
    score_NT, rows = problem(6)
    with pytest.raises(ConfigError, match=message):
        select(score_NT, GROUPS, 20, rows=rows, constraints=constraints)


def test_facts_that_a_limit_needs_must_be_given():
    score_NT, rows = problem(7)
    with pytest.raises(ConfigError, match=r"rows\.tokens: required for a budget in tokens"):
        select(score_NT, GROUPS, {"tokens": 100})
    with pytest.raises(ConfigError, match=r"rows\.source: required for constraints\.sources"):
        select(score_NT, GROUPS, 5, constraints={"sources": {"web": {"max": 1}}})
    with pytest.raises(ConfigError, match=r"rows\.id: required for constraints\.exclude"):
        select(score_NT, GROUPS, 5, constraints={"exclude": ["r1"]})
    with pytest.raises(ConfigError, match=r"budget\.tokens: no row fits"):
        select(score_NT, GROUPS, {"tokens": 1}, rows={"tokens": np.full(60, 2)})
    with pytest.raises(ConfigError, match=r"budget: found \{'token': 3\}"):
        select(score_NT, GROUPS, {"token": 3}, rows=rows)
    with pytest.raises(ConfigError, match="a min needs a budget in examples"):
        select(score_NT, GROUPS, {"tokens": 100}, rows=rows, constraints={"sources": {"web": {"min": 1}}})
    with pytest.raises(DataError, match="features: found"):
        select(score_NT, GROUPS, 5, features=np.zeros((3, 3)), constraints={"near_duplicates": 0.9})


def test_a_file_of_ids_is_read(tmp_path):
    score_NT, rows = problem(8)
    path = tmp_path / "ids.txt"
    path.write_text("r3\r\nr4\n\nr9")
    found = select(score_NT, GROUPS, 5, rows=rows, constraints={"include": str(path)})
    assert found.rows[:3].tolist() == [3, 4, 9]
