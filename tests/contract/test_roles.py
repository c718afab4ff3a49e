"""Laws of tasks to protect and to avoid: every method of the tables keeps to them without knowing of them."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

import influray
from influray.protocols import ConfigError, DataError, Selection, Selector
from influray.registry import METHODS, SELECTORS, resolve_method
from influray.store.attribution import ArrayAttribution
from influray.store.ranges import Threads
from tests.contract.test_selectors import DRAWN, PREFIX
from tests.reference.limited_choice import balanced_under_limits
from tests.reference.role_limit import allowed, filtered, first_breach

ALL = sorted({*SELECTORS, *METHODS})
N = 240
GROUPS = list("abxxaxpbp")
ROLES = {"x": "avoid", "p": "protect"}
SEEK = [j for j, task in enumerate(GROUPS) if task in "ab"]
# Whose order of preference does not depend on what was taken: roles leave rows of it out.
IN_ORDER = [name for name in ALL if resolve_method(name)[0] in ("top_k", "layers", "gumbel_top_k", "random", "longest")]
FACTS = {
    "id": [f"row-{i}" for i in range(N)],
    "source": ["web" if i % 4 else "code" for i in range(N)],
    "tokens": (np.random.default_rng(9).permutation(N) + 1).tolist(),
}
FEATURES = np.random.default_rng(8).standard_normal((N, 6))


def matrix() -> np.ndarray:
    """Rows that help a and b help x too, which is to be avoided, and harm p, which is to be protected."""
    rng = np.random.default_rng(4)
    good_N, width = rng.standard_normal(N), len(GROUPS)
    slope_T = np.array([{"a": 1.0, "b": 1.0, "x": 0.8, "p": -0.6}[task] for task in GROUPS])
    score_NT = np.outer(good_N, slope_T) + 0.8 * rng.standard_normal((N, width))
    return score_NT * np.exp(rng.standard_normal(width)) + rng.standard_normal(width)


def choose(
    method, budget, score_NT=None, roles=ROLES, groups=GROUPS, order: Any = slice(None), **given: Any
) -> Selection:
    facts = {name: np.array(values)[order].tolist() for name, values in FACTS.items()}
    source = matrix()[order] if score_NT is None else score_NT
    return influray.select(
        source, groups, budget, method=method, seed=7, rows=facts, features=FEATURES[order], roles=roles, **given
    )


def same(one: Selection, other: Selection) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("rows", "merit", "column"))


@pytest.mark.parametrize("method", ALL)
def test_the_limits_hold_at_every_prefix(method):
    found = choose(method, 40)
    assert first_breach(matrix(), GROUPS, ROLES, found.rows.tolist()) == ""
    assert len(set(found.rows.tolist())) == 40
    assert {GROUPS[j] for j in found.column if j >= 0} <= {"a", "b"}


@pytest.mark.parametrize("method", ["bids", "sum", "rr", "quota", "facility_location", "longest"])
def test_without_roles_the_same_rows_would_break_them(method):
    assert first_breach(matrix(), GROUPS, ROLES, choose(method, 40, roles={}).rows.tolist())


@pytest.mark.parametrize("method", ALL)
def test_tasks_that_are_all_sought_change_no_byte(method):
    plain = choose(method, 40, roles=None)
    assert same(plain, choose(method, 40, roles={}))
    assert same(plain, choose(method, 40, roles={"x": "seek", "a": "seek"}))


@pytest.mark.parametrize("method", [name for name in ALL if name not in ("strata",)])  # which draws from open rows
def test_no_merit_holds_a_task_that_is_not_sought(method):
    """One row alone helps the avoided task: to avoid it is to leave that row out."""
    score_NT = matrix()[:, SEEK]
    groups, row = [GROUPS[j] for j in SEEK], int(choose(method, 1, score_NT, {}, [GROUPS[j] for j in SEEK]).rows[0])
    spike_N = np.zeros((N, 1))
    spike_N[row] = 3.0
    found = choose(method, 40, np.hstack([spike_N, score_NT]), {"z": "avoid"}, ["z", *groups])
    expected = choose(method, 40, score_NT, {}, groups, constraints={"exclude": [f"row-{row}"]})
    assert found.rows.tolist() == expected.rows.tolist()
    assert found.merit.tobytes() == expected.merit.tobytes()
    assert found.column.tolist() == [j + 1 if j >= 0 else -1 for j in expected.column]


@pytest.mark.parametrize("method", IN_ORDER)
def test_a_ranking_loses_the_rows_that_would_break_a_limit_at_their_turn(method):
    order = choose(method, N, matrix()[:, SEEK], {}, [GROUPS[j] for j in SEEK]).rows.tolist()
    expected = filtered(order, 40, allowed(matrix(), GROUPS, ROLES))
    assert choose(method, 40).rows.tolist() == expected


def test_bids_loses_the_rows_that_would_break_a_limit_at_their_turn():
    score_NC = matrix()[:, SEEK]
    z_NC = (score_NC - score_NC.mean(axis=0)) / score_NC.std(axis=0)
    rows, merit = balanced_under_limits(z_NC, 60, allowed(matrix(), GROUPS, ROLES), [])
    found = choose("bids", 60)
    assert found.rows.tolist() == rows
    np.testing.assert_allclose(found.merit, merit, rtol=1e-9)


@pytest.mark.parametrize("method", [name for name in ALL if name not in DRAWN])
def test_the_order_of_the_rows_does_not_matter(method):
    order = np.random.default_rng(1).permutation(N)
    found, moved = choose(method, 40), choose(method, 40, order=order)
    assert order[moved.rows].tolist() == found.rows.tolist()
    assert moved.column.tolist() == found.column.tolist()


@pytest.mark.parametrize("method", [name for name in PREFIX if name not in ("icons",)])
def test_a_larger_budget_only_adds_at_the_end(method):
    whole = choose(method, 60)
    for budget in (1, 2, 17, 59):
        assert choose(method, budget).rows.tolist() == whole.rows[:budget].tolist()


class Elsewhere(Threads):
    """Runs the calls of a pass as workers do: sent to another copy of the matrix, the last one first."""

    def __init__(self, score_NT: np.ndarray) -> None:
        super().__init__(1)
        self._copy = ArrayAttribution(score_NT.copy(), block_rows=7)

    def map(self, source, calls):
        sent = [pickle.loads(pickle.dumps(call)) for call in calls]
        return iter([call.on(self._copy) for call in sent[::-1]][::-1])


@pytest.mark.parametrize("method", ALL)
def test_who_reads_the_matrix_and_in_which_blocks_does_not_show(method):
    score_NT = matrix().astype(np.float32)
    whole = choose(method, 40, score_NT)
    for block_rows in (1, 13, N - 1):
        assert same(choose(method, 40, ArrayAttribution(score_NT, block_rows)), whole)
    source = ArrayAttribution(score_NT)
    source.mapper = Elsewhere(score_NT)
    assert same(choose(method, 40, source), whole)


@pytest.mark.parametrize(
    ("roles", "said"),
    [
        ({"x": "ignore"}, r"roles\.x: found 'ignore', expected seek, protect or avoid"),
        ({"x": "avoids"}, r"did you mean 'avoid'\?"),
        ({"x": None}, r"roles\.x: found None"),
        ({"y": "avoid"}, r"roles\.y: no column has this task.*known: a, b, x, p"),
        (dict.fromkeys("abxp", "avoid"), "roles: no task is sought"),
        (["x"], r"roles: found \['x'\], expected a mapping"),
    ],
)
def test_roles_that_cannot_be_are_refused(roles, said):
    with pytest.raises(ConfigError, match=said):
        choose("bids", 5, roles=roles)


@pytest.mark.parametrize(
    ("method", "given", "said"),
    [
        ("bids", {"task_weights": {"x": 2.0}}, r"options\.task_weights\.x: the task's role is avoid"),
        ("bids", {"constraints": {"tasks": {"p": {"min": 1}}}}, r"constraints\.tasks\.p: the task's role is protect"),
        ("bids", {"task_weights": {"a": -1.0}}, r"found -1, expected a number above 0.*data\.targets\.a\.role: avoid"),
        ("less", {"task_weights": {"a": -1.0}}, r"found -1, expected a number above 0.*role"),
        ("sum", {"task_weights": {"a": 0}}, r"found 0, expected a number but 0.*role"),
        ("less", {"constraints": {"include": ["row-WORST"]}}, r"constraints\.include: .*avoided task 'x'.* above 0"),
    ],
)
def test_what_contradicts_a_role_is_refused_with_what_to_do(method, given, said):
    if "include" in given.get("constraints", {}):
        z_NT = (matrix() - matrix().mean(axis=0)) / matrix().std(axis=0)
        worst = int(z_NT[:, [j for j, task in enumerate(GROUPS) if task == "x"]].mean(axis=1).argmax())
        given = {"constraints": {"include": [f"row-{worst}"]}}
    with pytest.raises(ConfigError, match=said):
        choose(method, 5, **given)


@pytest.mark.parametrize("method", ALL)
def test_a_shortfall_names_the_task(method):
    with pytest.raises(
        ConfigError,
        match=r"only \d+ rows can be chosen in the order of the method, and the budget is "
        r"240 \(.*rows barred by the avoided task 'x'",
    ):
        choose(method, N, roles={"x": "avoid"})


@pytest.mark.parametrize(
    "method", ["bids", "less", "random", "rr", "quota", "facility_location", "interaction", "strata"]
)
def test_they_are_kept_to_beside_all_other_limits(method):
    limits = {"include": ["row-3", "row-10"], "sources": {"code": {"max": 6}}, "near_duplicates": 0.999}
    z_NT = (matrix() - matrix().mean(axis=0)) / matrix().std(axis=0)
    x_N = z_NT[:, [j for j, task in enumerate(GROUPS) if task == "x"]].mean(axis=1)
    limits["include"] = [f"row-{row}" for row in np.argsort(x_N)[:2]]
    found = choose(method, 20, roles={"x": "avoid"}, constraints=limits)
    assert first_breach(matrix(), GROUPS, {"x": "avoid"}, found.rows.tolist()) == ""
    assert {f"row-{row}" for row in found.rows} >= set(limits["include"])
    tokens = choose(method, {"tokens": 1500}, roles=ROLES)
    assert first_breach(matrix(), GROUPS, ROLES, tokens.rows.tolist()) == ""


def test_rows_that_must_be_in_are_judged_together():
    """One of them helps the avoided task, the other takes more away; the first alone would not be allowed."""
    x_N = np.array([1.0, -2.0, 1.5, -0.5, 0.0])
    score_NT = np.stack([np.arange(5.0), x_N], axis=1)
    facts = {"id": [f"row-{i}" for i in range(5)]}
    found = influray.select(
        score_NT,
        ["a", "x"],
        4,
        method="less",
        rows=facts,
        roles={"x": "avoid"},
        constraints={"include": ["row-0", "row-1"]},
    )
    assert found.rows.tolist()[:2] == [0, 1]
    with pytest.raises(ConfigError, match=r"constraints\.include: .* sums to \+"):
        influray.select(
            score_NT, ["a", "x"], 4, method="less", rows=facts, roles={"x": "avoid"}, constraints={"include": ["row-2"]}
        )


def test_a_minimum_that_a_role_leaves_no_rows_for_is_an_error_that_names_both():
    x_N = np.array([1.0, 1.0, 1.0, -1.0, -1.0, -1.0])
    score_NT = np.stack([np.arange(6.0)[::-1], x_N], axis=1)
    with pytest.raises(ConfigError, match=r"limits of sources and tasks.*avoided task 'x'"):
        influray.select(
            score_NT,
            ["a", "x"],
            3,
            method="less",
            rows={"source": ["s", "s", "s", "t", "t", "t"]},
            roles={"x": "avoid"},
            constraints={"sources": {"s": {"min": 2}}},
        )


def test_a_task_that_cannot_be_measured_cannot_be_avoided():
    score_NT = np.hstack([matrix(), np.ones((N, 1))])
    with pytest.raises(DataError, match="every column of task 'flat' is constant or non-finite.* cannot avoid it"):
        influray.select(score_NT, [*GROUPS, "flat"], 5, roles={"flat": "avoid"})
    score_NT = np.hstack([matrix(), np.full((N, 1), np.nan)])
    roles = {"x": "avoid"}
    found = influray.select(score_NT, [*GROUPS, "x"], 30, roles=roles)
    assert found.rows.tolist() == influray.select(matrix(), GROUPS, 30, roles=roles).rows.tolist()


class Heedless(Selector):
    """Takes the first rows, whatever they are."""

    def select(self, problem):
        assert problem.attribution.shape[1] == len(problem.groups) == len(SEEK), "it sees what is sought"
        return Selection(problem.attribution.rows[:9], np.zeros(9), np.zeros(9, np.int64))


def test_a_plug_in_that_breaks_a_role_is_named():
    with pytest.raises(ConfigError, match=r"chose \d+ rows whose standardised influence on the .* sums to"):
        choose(f"{__name__}:Heedless", 9)


def test_ranks_of_one_task_less_those_of_another_are_one_config():
    """Influence for CoT pruning: rows by rank(correct) - rank(incorrect)."""
    good_N, bad_N = np.random.default_rng(0).standard_normal((2, 50))
    found = influray.select(
        np.stack([good_N, bad_N], axis=1),
        ["correct", "incorrect"],
        10,
        method="top_k",
        normaliser="rank",
        reduction="mean",
        task_weights={"correct": 1.0, "incorrect": -1.0},
    )
    difference_N = np.argsort(np.argsort(good_N)) - np.argsort(np.argsort(bad_N))
    assert difference_N[found.rows].tolist() == np.sort(difference_N)[::-1][:10].tolist()
