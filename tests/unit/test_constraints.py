"""Limits of a selection: what is chosen keeps to them, is the method's own order otherwise, and no limit is quiet."""

from __future__ import annotations

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ConfigError, DataError
from influray.registry import METHODS, SELECTORS
from influray.selectors import duplicates
from influray.selectors.api import select
from influray.selectors.normalisers import row_tasks
from influray.selectors.row_facts import ArrayFeatures
from influray.store.attribution import ArrayAttribution
from tests.reference.limited_choice import apart_in_order, balanced_under_limits, choose_in_order, keeps

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
    found = select(
        *(score_NT, GROUPS, 20), method=method, rows=rows, constraints=constraints, features=np.eye(60), seed=3
    )
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
    features = np.eye(60)
    free = select(score_NT, GROUPS, 20, method=method, rows=rows, features=features, seed=3)
    loose = {"sources": {"web": {"max": 60}}, "tasks": {"a": {"min": 0}}, "near_duplicates": 1.0}
    bound = select(score_NT, GROUPS, 20, method=method, rows=rows, constraints=loose, features=features, seed=3)
    assert bound.rows.tolist() == free.rows.tolist()
    assert bound.merit.tobytes() == free.merit.tobytes()
    assert bound.column.tolist() == free.column.tolist()


@pytest.mark.parametrize("method", ALL)
def test_a_budget_in_tokens_is_filled_and_never_overshot(method):
    score_NT, rows = problem(2)
    for tokens in (40, 200, 10_000):
        found = select(*(score_NT, GROUPS, {"tokens": tokens}), method=method, rows=rows, features=np.eye(60), seed=3)
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
    score_N1 = -np.arange(40.0)[:, None]
    expected = apart_in_order(features, threshold)
    budget = len(expected)
    found = select(score_N1, ["a"], budget, method="sum", features=features, constraints={"near_duplicates": threshold})
    assert found.rows.tolist() == expected
    if budget < 40:
        with pytest.raises(ConfigError, match=r"only \d+ rows can be chosen.*near_duplicates"):
            select(
                score_N1, ["a"], budget + 1, method="sum", features=features, constraints={"near_duplicates": threshold}
            )


@pytest.mark.parametrize("method", ["bids", "sum", "facility_location", "interaction", "rr", "random", "strata"])
@pytest.mark.parametrize("threshold", [0.9, 0.98, 1.0])
def test_near_duplicates_of_long_rows_are_found_in_blocks_as_one_by_one(method, threshold, monkeypatch):
    """Rows of 300 numbers are sketched; blocks of 4 and few rows at a time make every path run."""
    monkeypatch.setattr(duplicates, "BLOCK", 4)
    monkeypatch.setattr(duplicates, "READ_ROWS", 7)
    monkeypatch.setattr(duplicates, "COMPARED_ROWS", 16)
    rng = np.random.default_rng(1)
    base = rng.standard_normal((40, 300)).astype(np.float32)
    noise = rng.choice([0, 0, 0.003, 0.02], (120, 1)) * rng.standard_normal((120, 300))
    features = base[rng.integers(0, 40, 120)] * rng.uniform(0.5, 2, (120, 1)) + noise
    score_NT = rng.standard_normal((120, 5))
    limits = {"near_duplicates": threshold}
    found = select(score_NT, GROUPS, 30, method=method, features=features, constraints=limits, seed=2)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    cosine = unit[found.rows] @ unit[found.rows].T - 2 * np.eye(30)
    assert cosine.max() < threshold - 1e-9
    if method == "sum":
        order = np.argsort(-score_NT.sum(axis=1), kind="stable")
        assert found.rows.tolist() == order[apart_in_order(features[order], threshold)][:30].tolist()


@pytest.mark.parametrize("rows_alike", [False, True])
def test_at_a_threshold_of_one_exact_copies_are_left_out_and_nothing_else(rows_alike):
    rng = np.random.default_rng(0)
    base = rng.standard_normal((100, 200)) + (30 if rows_alike else 0)  # rows that nearly point one way: cosine .999
    features = np.concatenate([base, base, base * 3.7])
    found = select(
        -np.arange(300.0)[:, None], ["a"], 100, method="sum", features=features, constraints={"near_duplicates": 1.0}
    )
    assert found.rows.tolist() == list(range(100))


def test_a_row_that_stands_in_for_one_that_a_min_needs_is_passed_over():
    score_N1, rows = np.array([[3.0], [2], [1], [0]]), {"source": list("xyzz"), "id": list("abcd")}
    features = np.array([[1.0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]])
    limits = {"near_duplicates": 0.98, "sources": {"y": {"min": 1}}}
    for method in ("sum", "bids"):
        found = select(score_N1, ["t"], 2, method=method, rows=rows, features=features, constraints=limits)
        assert found.rows.tolist() == [1, 2]
    with pytest.raises(ConfigError, match="no selection was found that keeps to near_duplicates and to sources"):
        select(
            score_N1,
            ["t"],
            2,
            method="sum",
            rows=rows,
            features=features,
            constraints={**limits, "sources": {"y": {"min": 1}, "x": {"min": 1}}},
        )


@settings(max_examples=150, deadline=None, derandomize=True)
@given(seed=st.integers(0, 2**32), n=st.integers(4, 8), size=st.integers(1, 4), least=st.integers(1, 2))
def test_near_duplicates_and_sources_are_kept_to_together_or_no_selection_is_said_to_be_found(seed, n, size, least):
    rng = np.random.default_rng(seed)
    kinds = {"sources": [*"xyz", *(str(s) for s in rng.choice(list("xyz"), n - 3))]}
    features = np.eye(n)[rng.integers(0, max(2, n - 2), n)]
    score_NT = rng.standard_normal((n, 2))
    bounds = {"sources": {"x": (min(least, size), None)}}
    rows = {"source": kinds["sources"], "id": [str(i) for i in range(n)]}
    limits = {"sources": {"x": {"min": min(least, size)}}, "near_duplicates": 0.9}

    def possible(chosen) -> bool:
        apart = len({int(features[row].argmax()) for row in chosen}) == len(chosen)
        return apart and keeps(list(chosen), kinds, bounds)

    def call():
        return select(score_NT, list("ab"), size, method="sum", rows=rows, features=features, constraints=limits)

    if any(possible(chosen) for chosen in combinations(range(n), size)):
        assert possible(call().rows.tolist())
    else:
        with pytest.raises(ConfigError, match="constraints"):
            call()


def test_bids_prepares_for_its_candidates_and_chooses_as_the_plain_loop():
    rng = np.random.default_rng(3)
    score_NT = rng.standard_normal((9000, 5))
    features = rng.standard_normal((3000, 96))[np.arange(9000) % 3000]
    score_NT[3000:] = score_NT[np.arange(6000) % 3000] + 1e-3 * score_NT[3000:]  # copies are chosen side by side

    def apart(chosen, row):
        return all(row % 3000 != other % 3000 for other in chosen)

    expected, _ = balanced_under_limits(standardised(score_NT), 60, apart, [])
    found = select(score_NT, GROUPS, 60, features=features, constraints={"near_duplicates": 0.98})
    assert found.rows.tolist() == expected


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
