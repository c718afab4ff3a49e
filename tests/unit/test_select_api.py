"""influray.select: from arrays and from disk, budgets in every form, and readable refusals."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import influray
from influray.protocols import ConfigError, DataError
from influray.selectors.api import resolve_budget, select
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution

GROUPS = ["a", "a", "b"]


def matrix(n: int = 80, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((n, 3)).astype(np.float32)


def commit(folder, score_NT: np.ndarray, rows: np.ndarray) -> None:
    store = ShardStore(folder)
    keys = [f"{k:064x}" for k in range(3)]
    cuts = [0, 11, 50, len(rows)]
    for key, start, stop in zip(keys, cuts, cuts[1:], strict=False):
        store.commit(key, attribution_table(rows[start:stop], score_NT[start:stop]), {})
    commit_attribution(store, keys, {}, range(3), ["x", "y", "z"], GROUPS)


@pytest.mark.parametrize("method", ["bids", "less", "random", "sum"])
def test_a_matrix_on_disk_gives_what_it_gives_in_memory(tmp_path, method):
    score_NT = matrix()
    row_N = np.arange(80) * 2 + 5
    commit(tmp_path, score_NT, row_N)
    expected = influray.select(score_NT, GROUPS, 33, method=method, seed=4)
    for path, groups in ((tmp_path, GROUPS), (str(tmp_path), None)):
        found = influray.select(path, groups, 33, method=method, seed=4)
        assert found.rows.tolist() == row_N[expected.rows].tolist(), "rows of a path are catalogue rows"
        assert found.merit.tobytes() == expected.merit.tobytes()
        assert found.column.tolist() == expected.column.tolist()


def test_what_was_asked_for_stands_on_the_result():
    found = select(matrix(), GROUPS, 5, task_weights={"b": 2})
    assert found.method == "bids"
    assert dict(found.options) == {"normaliser": "zscore", "task_weights": {"b": 2}}
    assert dict(select(matrix(), GROUPS, 5, normaliser="none").options) == {"normaliser": "none"}


@pytest.mark.parametrize("form", [np.asarray, torch.from_numpy, np.ndarray.tolist])
def test_any_array_like_is_taken(form):
    assert select(form(matrix()), np.array(GROUPS), 9).rows.tolist() == select(matrix(), GROUPS, 9).rows.tolist()


@pytest.mark.parametrize(
    ("budget", "total", "expected"),
    [
        (1, 7, 1),
        (7, 7, 7),
        (1.0, 7, 7),
        (0.5, 7, 3),
        (0.29, 100, 29),  # 0.29 * 100 is 28.999999999999996 in binary
        (0.07, 100, 7),
        (0.57, 100, 57),
        (0.15, 288_000, 43_200),
        (1e-7, 10_000_000, 1),
        (np.int64(3), 7, 3),
        (np.float64(0.5), 8, 4),
    ],
)
def test_a_budget_is_examples_or_a_fraction_rounded_down(budget, total, expected):
    assert resolve_budget(budget, total) == expected


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        (0, r"budget: 0 examples of 80 rows; expected 1 to 80"),
        (-3, r"budget: -3 examples"),
        (81, r"budget: 81 examples of 80 rows"),
        (0.0, r"budget: found the fraction 0\.0"),
        (1.5, r"budget: found the fraction 1\.5, expected one in \(0, 1\]; examples are given as an integer"),
        (80.0, r"budget: found the fraction 80\.0"),
        (float("nan"), r"budget: found the fraction nan"),
        (0.001, r"budget: 0\.001 of 80 rows is less than one example"),
        (True, r"budget: found True"),
        ("10%", r"budget: found '10%'"),
        (None, r"budget: found None"),
    ],
)
def test_a_wrong_budget_says_what_would_be_right(budget, message):
    with pytest.raises(ConfigError, match=message):
        select(matrix(), GROUPS, budget)


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (["a", "b"], r"groups: 2 names for 3 columns"),
        ("aab", r"groups: found the string 'aab'"),
        (["a", float("nan"), "b"], r"groups\.1: found nan"),
        (["a", "", "b"], r"groups\.1: found ''"),
        ([0, 1, 1], r"groups\.0: found 0"),
        (None, r"groups: required for an array"),
    ],
)
def test_wrong_groups_say_what_would_be_right(groups, message):
    with pytest.raises(ConfigError, match=message):
        select(matrix(), groups, 5)


def test_what_is_wrong_is_refused_and_not_ignored():
    with pytest.raises(ConfigError, match="source: unknown key; did you mean 'sources'"):
        select(matrix(), GROUPS, 5, constraints={"source": {"a": {"max": 3}}})
    with pytest.raises(DataError, match="features: found float64 of shape"):
        select(matrix(), GROUPS, 5, features=np.zeros(7))
    for seed in (1.5, "0", True, None):
        with pytest.raises(ConfigError, match="seed: found"):
            select(matrix(), GROUPS, 5, seed=seed)


def test_facts_of_rows_reach_the_method_and_must_fit():
    name = f"{__name__}:Longest"
    tokens = np.random.default_rng(0).permutation(80)
    found = select(matrix(), GROUPS, 3, method=name, rows={"tokens": tokens})
    assert found.rows.tolist() == np.argsort(-tokens)[:3].tolist()
    with pytest.raises(ConfigError, match=r"rows\.tokens: 79 values for 80 rows"):
        select(matrix(), GROUPS, 3, method=name, rows={"tokens": tokens[:79]})


class Longest:
    def select(self, problem):
        rows = np.argsort(-np.asarray(problem.facts["tokens"]), kind="stable")[: problem.budget]
        return influray.Selection(rows, np.full(len(rows), np.nan), np.full(len(rows), -1))


@pytest.mark.parametrize("method", ["bids", "less", "instance_max"])
def test_a_row_without_scores_is_named(method):
    score_NT = matrix()
    score_NT[17] = np.nan
    with pytest.raises(DataError, match="row 17"):
        select(score_NT, GROUPS, 5, method=method)


def test_more_asked_for_than_there_is_fails_before_any_work():
    with pytest.raises(ConfigError, match="budget"):
        select(np.full((3, 3), np.nan), GROUPS, 4)
