"""Budgets that choose themselves: planted numbers of near rows are found, and what is asked wrongly is told."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from influray.protocols import ConfigError, DataError
from influray.selectors import auto_budget
from influray.selectors.api import select, settle_budget
from influray.selectors.auto_budget import describe, otm_budget
from influray.store.attribution import ArrayAttribution
from tests.reference.exact_transport import least_cost

GROUPS = ["abcd"[j % 4] for j in range(40)]


def cosines(near: int, rows: int = 600, seed: int = 0) -> np.ndarray:
    """Cosines of rows with 40 targets of 4 tasks: the first `near` rows are drawn as targets are, the rest at large."""
    rng = np.random.default_rng(seed)
    centre = rng.standard_normal((4, 32))
    pool, target = rng.standard_normal((rows, 32)), centre[np.arange(40) % 4] + rng.standard_normal((40, 32))
    pool[:near] += centre[np.arange(near) % 4]
    unit = [vectors / np.linalg.norm(vectors, axis=1, keepdims=True) for vectors in (pool, target)]
    return (unit[0] @ unit[1].T).astype(np.float32)


def found(score_NT, groups=GROUPS, folds=4, most=10**9, seed=0, block_rows=2048):
    return otm_budget(ArrayAttribution(score_NT, block_rows), groups, folds, most, seed)


def test_about_as_many_rows_as_are_drawn_as_targets_are():
    """Within a factor of 3: a fold has 10 targets here, and near the best k the distance hardly changes."""
    numbers = [found(cosines(near, rows=1500)).rows for near in (50, 100, 300)]
    assert numbers == sorted(numbers)
    for near, number in zip((50, 100, 300), numbers, strict=True):
        assert near / 3 < number < near * 3


def test_the_distances_are_those_of_exact_transport_and_the_best_k_counts():
    rng = np.random.default_rng(5)
    pool, target = rng.standard_normal((60, 3)), rng.standard_normal((6, 3)) + 1
    score_NT = (pool / np.linalg.norm(pool, axis=1, keepdims=True)) @ (
        target / np.linalg.norm(target, axis=1, keepdims=True)
    ).T
    choice = found(score_NT, ["a"] * 6, folds=3)
    order_NT = np.argsort(-score_NT, axis=0, kind="stable")
    fold_T = auto_budget._folds(["a"] * 6, 3, 0)
    union: set[int] = set()
    for fold, one in enumerate(choice.folds):
        own, other = np.flatnonzero(fold_T == fold), np.flatnonzero(fold_T != fold)
        sets = [np.unique([i for j in own for i in order_NT[:k, j] if score_NT[i, j] > 0]) for k in range(1, 7)]
        exact = [least_cost(np.sqrt(2 - 2 * score_NT[rows][:, other])) for rows in sets]
        assert one.targets == 2
        assert one.rows == len(sets[one.k - 1])
        assert one.distance == pytest.approx(exact[one.k - 1], abs=0.01)
        assert one.distance <= min(exact) + 0.01
        union |= set(sets[one.k - 1].tolist())
    assert choice.rows == choice.found == len(union)


def test_the_order_of_rows_and_the_size_of_blocks_change_nothing_and_the_seed_deals_the_folds():
    score_NT = cosines(60)
    one = found(score_NT)
    order = np.random.default_rng(1).permutation(600)
    assert found(score_NT[order]).rows == one.rows
    assert found(score_NT, block_rows=7) == one
    assert found(score_NT) == one
    assert found(score_NT, seed=1).folds != one.folds


def test_every_task_is_in_every_fold_and_no_column_in_two():
    fold_T = auto_budget._folds(GROUPS, 10, 3)
    for task in "abcd":
        assert np.bincount(fold_T[[group == task for group in GROUPS]], minlength=10).tolist() == [1] * 10
    assert sorted(auto_budget._folds(["a"] * 3, 10, 0).tolist()) == [0, 1, 2], "no more folds than columns"


def test_it_is_never_more_than_the_most_and_says_so():
    whole, cut = found(cosines(60)), found(cosines(60), most=30)
    assert (cut.rows, cut.found, cut.folds) == (30, whole.rows, whole.folds)
    assert f"they are {whole.rows:,} rows, and budget.most is 30" in cut.text
    assert "budget.most" not in whole.text
    assert whole.text == describe(whole.as_plain())


def test_too_many_distances_end_a_fold(monkeypatch):
    monkeypatch.setattr(auto_budget, "CELLS", 20 * 30)
    assert max(one.rows for one in found(cosines(60)).folds) <= 20


def test_constant_and_non_finite_columns_do_no_harm():
    score_NT = cosines(60)
    expected = found(score_NT[:, 1:], GROUPS[1:])
    score_NT[5, 0] = np.nan
    assert found(score_NT).rows == expected.rows


def test_select_takes_it_for_every_method_and_tells_how_many(caplog):
    score_NT = cosines(60)
    with caplog.at_level(logging.INFO, logger="influray"):
        chosen = [select(score_NT, GROUPS, "auto", method=method).rows for method in ("layers", "random")]
    number = found(score_NT, folds=10, most=120).rows
    assert [len(rows) for rows in chosen] == [number, number]
    assert f"the budget chose itself: {number} rows by OTM over 10 folds" in caplog.text
    assert np.isin(np.arange(60), chosen[0]).mean() > 0.7, "layers takes the rows that the budget was counted by"
    assert len(select(score_NT, GROUPS, {"auto": "otm", "most": 0.02}, method="random").rows) == 12


def test_it_looks_at_the_tasks_that_are_sought_alone():
    score_NT = cosines(60)
    sought = [j for j, group in enumerate(GROUPS) if group != "d"]
    number, choice = settle_budget({"auto": "otm", "folds": 4}, ArrayAttribution(score_NT), GROUPS, 0, {"d": "avoid"})
    assert choice == found(score_NT[:, sought], [GROUPS[j] for j in sought], most=120)
    assert number == choice.rows


def test_a_fraction_is_of_the_whole_pool_where_a_cascade_let_a_part_pass():
    choices = [
        settle_budget({"auto": "otm", "most": 0.02, "folds": 4}, ArrayAttribution(cosines(60)), GROUPS, 0, {}, never)[0]
        for never in (0, 600)
    ]
    assert choices == [12, 24]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({"auto": "knee"}, r"budget: auto: must be otm; the budget that tuned loss asks for is known after tuning"),
        ({"auto": "otm", "fold": 3}, r"budget: fold: unknown key; did you mean 'folds'\?"),
        ({"auto": "otm", "folds": 1}, r"budget: folds: Input should be greater than or equal to 2"),
        ({"auto": "otm", "most": 0}, r"budget: most: must be a number of examples .* or a fraction in \(0, 1\]"),
        ({"auto": "otm", "most": 1.5}, r"budget: most: must be a number of examples"),
        ("otm", r"budget: found 'otm', expected a number of examples"),
    ],
)
def test_what_is_asked_wrongly_is_told(budget, message):
    with pytest.raises(ConfigError, match=message):
        select(cosines(20, rows=100), GROUPS, budget)


def test_scores_that_are_no_cosines_or_help_nobody_are_told():
    with pytest.raises(
        DataError, match=r"compares rows by cosines, and a score is .* take attribution\.scorer whitened"
    ):
        select(10 * cosines(20, rows=100), GROUPS, "auto")
    with pytest.raises(DataError, match=r"no score is above 0.* give budget a number"):
        select(-np.abs(cosines(20, rows=100)), GROUPS, "auto")
    with pytest.raises(ConfigError, match=r"budget\.auto: otm compares targets with each other, .* one column"):
        select(cosines(20, rows=100)[:, :1], ["a"], "auto")
