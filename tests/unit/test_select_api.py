"""influray.select: from arrays and from disk, budgets in every form, and readable refusals."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch

import influray
from influray.protocols import ConfigError, DataError, Selector
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


def test_a_fraction_is_of_the_whole_pool_where_a_cascade_let_a_share_of_it_pass():
    assert resolve_budget(0.25, 12, 12) == 6
    assert resolve_budget(0.5, 12, 12) == resolve_budget(12, 12, 12) == 12
    with pytest.raises(ConfigError, match=r"0\.75 of 24 rows is 18 examples, and 12 rows passed the cascade"):
        resolve_budget(0.75, 12, 12)
    with pytest.raises(ConfigError, match="13 examples of 12 rows that passed the cascade, of 24; expected 1 to 12"):
        resolve_budget(13, 12, 12)


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


class Longest(Selector):
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


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_column_that_cannot_be_used_is_told_in_memory_as_on_disk(tmp_path, bad, caplog):
    score_NT = matrix()
    score_NT[3, 1] = bad
    commit(tmp_path, score_NT, np.arange(80))
    caplog.clear()
    found = select(score_NT, GROUPS, 5)
    assert found.dropped_columns == {1: "non-finite"}
    assert "column 1 takes no part: it is non-finite" in caplog.text
    assert select(tmp_path, None, 5).dropped_columns == {1: "non-finite"}
    assert select(matrix(), GROUPS, 5).dropped_columns == {}


def test_facts_may_be_a_data_frame_an_arrow_table_or_tensors():
    tokens, ids = [3, 0, 7] * 20 + [1] * 20, [f"r{i}" for i in range(80)]
    columns = {"tokens": tokens, "id": ids}
    frames = [columns, pd.DataFrame(columns), pa.table(columns), {"tokens": torch.tensor(tokens), "id": np.array(ids)}]
    frames.append({"tokens": pd.Series(tokens, index=range(7, 87)), "id": pa.chunked_array([ids[:30], ids[30:]])})
    frames.append({"tokens": np.array(tokens, np.float64), "id": tuple(ids)})
    for rows in frames:
        found = select(matrix(), GROUPS, {"tokens": 20}, rows=rows, constraints={"exclude": ["r2"], "include": ["r5"]})
        expected = select(
            matrix(), GROUPS, {"tokens": 20}, rows=columns, constraints={"exclude": ["r2"], "include": ["r5"]}
        )
        assert found.rows.tolist() == expected.rows.tolist()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ({"tokens": [1] * 79 + [-1]}, r"rows\.tokens: found -1 at row 79"),
        ({"tokens": [1] * 79 + [1.5]}, r"rows\.tokens: found 1\.5 at row 79"),
        ({"tokens": [float("nan")] + [1] * 79}, r"rows\.tokens: found nan at row 0"),
        ({"tokens": [float("inf")] + [1] * 79}, r"rows\.tokens: found inf at row 0"),
        ({"tokens": [True] * 80}, r"rows\.tokens: found True at row 0"),
        ({"tokens": [None] * 80}, r"rows\.tokens: found None at row 0"),
        ({"tokens": np.ones((80, 2))}, r"rows\.tokens: found list at row 0"),
        ({"tokens": np.float64(3)}, r"rows\.tokens: found float64, expected one value per row"),
        ({"source": "abc"}, r"rows\.source: found str"),
        ([1, 2], r"rows: found list, expected columns by name"),
    ],
)
def test_facts_that_are_none_say_so(rows, message):
    with pytest.raises(ConfigError, match=message):
        select(matrix(), GROUPS, 5, rows=rows)


def test_every_row_of_an_id_is_excluded_and_an_id_of_two_rows_cannot_be_included():
    score_NT = np.arange(12, dtype=np.float64)[:, None].repeat(3, 1) + np.arange(3) % 2
    rows = {"id": ["a", "b", "a", *"cdefghi", "a", "j"]}
    found = select(score_NT, GROUPS, 9, method="sum", normaliser="none", rows=rows, constraints={"exclude": ["a"]})
    assert sorted(found.rows.tolist()) == [1, 3, 4, 5, 6, 7, 8, 9, 11]
    with pytest.raises(ConfigError, match=r"constraints\.include: the id 'a' is that of 3 rows"):
        select(score_NT, GROUPS, 9, rows=rows, constraints={"include": ["b", "a"]})


@pytest.mark.parametrize("method", [None, 3, ["bids"]])
def test_a_method_that_is_no_name_says_so(method):
    with pytest.raises(ConfigError, match="method: found"):
        select(matrix(), GROUPS, 5, method=method)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_features_may_be_tensors(dtype):
    feature_ND = torch.randn(80, 16, generator=torch.Generator().manual_seed(0)).to(dtype)
    constraints = {"near_duplicates": 0.5}
    found = select(matrix(), GROUPS, 5, features=feature_ND, constraints=constraints)
    expected = select(matrix(), GROUPS, 5, features=feature_ND.float().numpy(), constraints=constraints)
    assert found.rows.tolist() == expected.rows.tolist()
    two = select(matrix(), GROUPS, 5, features=[feature_ND, feature_ND], constraints=constraints)
    assert two.rows.tolist() == expected.rows.tolist()
