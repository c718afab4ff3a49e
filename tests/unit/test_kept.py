"""Every selector's result is held to the limits of its problem, plug-ins included."""

from __future__ import annotations

import numpy as np
import pytest

import influray
from influray.protocols import ConfigError, Limits, Selection, SelectionProblem, Selector
from influray.selectors.kept import require_kept
from influray.selectors.row_facts import ArrayFeatures
from influray.store.attribution import ArrayAttribution

N = 12
FACTS = {
    "id": [f"row-{i}" for i in range(N)],
    "source": ["web" if i % 2 else "code" for i in range(N)],
    "tokens": list(range(10, 10 + N)),
}
NAME = f"{__name__}:Given"


class Given(Selector):
    """Chooses the rows that it is told."""

    def __init__(self, chosen):
        self.chosen = np.array(chosen)

    def select(self, problem):
        n = len(self.chosen)
        return Selection(self.chosen, np.zeros(n), np.full(n, -1))


def matrix() -> np.ndarray:
    score_NT = np.zeros((N, 2))
    score_NT[: N // 2, 0] = score_NT[N // 2 :, 1] = 1.0
    return score_NT + 1e-3 * np.random.default_rng(0).standard_normal((N, 2))


def choose(chosen, budget, **constraints):
    features = np.eye(N) if "near_duplicates" not in constraints else np.repeat(np.eye(N // 2), 2, axis=0)
    return influray.select(
        matrix(), ["a", "b"], budget, method=NAME, rows=FACTS, features=features, constraints=constraints, chosen=chosen
    )


BROKEN = [
    ([0, 1], 2, {"exclude": ["row-1"]}, r"chose the id 'row-1', which constraints\.exclude bars"),
    ([0, 1], 2, {"include": ["row-5"]}, r"did not choose the id 'row-5', which constraints\.include asks for"),
    ([10, 11], {"tokens": 40}, {}, r"rows of 41 tokens, and budget\.tokens is 40"),
    ([0, 2], 2, {"sources": {"web": {"min": 1}}}, r"0 rows of 'web', and constraints\.sources\.web\.min is 1"),
    ([0, 2], 2, {"sources": {"code": {"max": 1}}}, r"2 rows of 'code', and constraints\.sources\.code\.max is 1"),
    ([0, 2], 2, {"tasks": {"a": {"max": 1}}}, r"2 rows of 'a', and constraints\.tasks\.a\.max is 1"),
    ([0, 1], 2, {"near_duplicates": 0.99}, r"row 1, a near-duplicate of row 0 \(constraints\.near_duplicates\)"),
    ([0], 2, {}, "did not return 2 different rows"),
]


@pytest.mark.parametrize(("chosen", "budget", "constraints", "said"), BROKEN, ids=[said[:40] for *_, said in BROKEN])
def test_a_plug_in_that_breaks_a_limit_is_named_with_the_limit(chosen, budget, constraints, said):
    with pytest.raises(ConfigError, match=said) as caught:
        choose(chosen, budget, **constraints)
    assert NAME in str(caught.value)
    assert "an error of the method" in str(caught.value)


@pytest.mark.parametrize(
    ("chosen", "budget", "constraints"),
    [
        ([0, 5], 2, {"include": ["row-5"], "exclude": ["row-1"]}),
        ([10, 11], {"tokens": 41}, {}),
        ([0, 1], 2, {"sources": {"web": {"min": 1, "max": 1}}, "tasks": {"a": {"max": 2}}}),
        ([0, 2], 2, {"near_duplicates": 0.99}),
        ([1, 0], 2, {"near_duplicates": 0.99, "include": ["row-0"]}),  # what must be in may repeat another
    ],
)
def test_a_plug_in_that_keeps_to_them_passes(chosen, budget, constraints):
    assert choose(chosen, budget, **constraints).rows.tolist() == chosen


@pytest.mark.parametrize(
    "method", ["bids", "less", "quota", "rr", "random", "layers", "facility_location", "interaction", "longest"]
)
def test_the_selectors_of_the_table_keep_to_all_limits_at_once(method):
    constraints = {
        "include": ["row-3"],
        "exclude": ["row-4"],
        "sources": {"web": {"max": 3}, "code": {"min": 2}},
        "tasks": {"a": {"min": 2, "max": 4}},
    }
    found = influray.select(
        matrix(), ["a", "b"], 6, method=method, rows=FACTS, features=np.eye(N), constraints=constraints
    )
    limits = Limits(include=("row-3",), exclude=("row-4",), near_duplicates=0.99)
    problem = SelectionProblem(
        ArrayAttribution(matrix()), ("a", "b"), 6, facts=FACTS, limits=limits, features=ArrayFeatures(np.eye(N), N)
    )
    require_kept(found, problem, NAME)
