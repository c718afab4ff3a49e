"""What influray relies on of a selector.

Shape suffixes: N pool rows, T targets.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from influray.protocols import ConfigError, Limits, RoleLimit, Selection, SelectionProblem, Selector
from influray.selectors.kept import require_kept
from influray.selectors.row_facts import ArrayFeatures
from influray.store.attribution import ArrayAttribution
from influray.testing.laws import law

ROWS, TARGETS = 90, 10
GROUPS = tuple("aaabbccccc")  # of the targets
FACTS = {
    "id": [f"row-{i}" for i in range(ROWS)],
    "source": ["web" if i % 3 else "code" for i in range(ROWS)],
    "tokens": (np.random.default_rng(9).permutation(ROWS) + 1).tolist(),
}
FEATURES = ArrayFeatures(np.random.default_rng(8).standard_normal((ROWS, 6)), ROWS)


def check_selector(make: Callable[[], Selector]) -> None:
    """Check the selectors that `make()` returns: a class without required options, or a lambda that gives them.

    Raises:
        AssertionError: with the law that is broken.
    """
    for one in SELECTOR_LAWS:
        one(make)


def made_matrix(seed: int = 0, rows: int = ROWS) -> np.ndarray:
    """Return scores [N, T] float64 whose columns differ in height and spread."""
    rng = np.random.default_rng(seed)
    return rng.standard_normal((rows, TARGETS)) * np.exp(rng.standard_normal(TARGETS)) + rng.standard_normal(TARGETS)


def _chosen(make: Callable[[], Selector], score_NT: np.ndarray, budget: int = 30, block_rows: int = 2048) -> Selection:
    return make().select(
        SelectionProblem(ArrayAttribution(score_NT, block_rows), GROUPS, budget, 7, FACTS, features=FEATURES)
    )


def _same(one: Selection, other: Selection) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("rows", "merit", "column"))


def fills_the_budget(make: Callable[[], Selector]) -> None:
    """The selection has as many different rows as the budget, in the types of `Selection`."""
    for budget in (1, 30, ROWS - 1, ROWS):
        found = _chosen(make, made_matrix(), budget)
        given = {"rows": found.rows, "merit": found.merit, "column": found.column}
        kinds = {name: (str(array.dtype), array.shape) for name, array in given.items()}
        right = {name: (kind, (budget,)) for name, kind in zip(given, ("int64", "float64", "int64"), strict=True)}
        law(kinds == right, f"a budget of {budget} gave {kinds}, expected {right}")
        law(len(set(found.rows.tolist())) == budget, f"rows repeat in a selection of {budget}")
        law(set(found.rows.tolist()) <= set(range(ROWS)), "a row that the matrix does not have was chosen")
        law(set(found.column.tolist()) <= set(range(-1, TARGETS)), "a column is neither -1 nor one of the matrix")


def is_a_pure_function(make: Callable[[], Selector]) -> None:
    """The same problem gives the same bytes; the matrix is left alone, and so is NumPy's global generator."""
    score_NT = made_matrix()
    before = score_NT.copy()
    saved = np.random.get_state()
    np.random.seed(1)
    one, after = _chosen(make, score_NT), np.random.random()
    np.random.seed(2)
    other = _chosen(make, score_NT)
    np.random.seed(1)
    untouched = after == np.random.random()
    np.random.set_state(saved)
    law(_same(one, other), "the same problem gave two selections: draw by np.random.default_rng(problem.seed) alone")
    law(untouched, "NumPy's global generator was moved: draw by np.random.default_rng(problem.seed) alone")
    law(np.array_equal(score_NT, before), "the attribution matrix was written to")


def blocks_do_not_show(make: Callable[[], Selector]) -> None:
    """A matrix that is streamed in blocks of any size gives the bytes of the whole."""
    score_NT = made_matrix().astype(np.float32)
    whole = _chosen(make, score_NT)
    for rows in (1, 2, 13, ROWS - 1):
        law(_same(_chosen(make, score_NT, block_rows=rows), whole), f"blocks of {rows} rows give another selection")


def keeps_the_limits(make: Callable[[], Selector]) -> None:
    """Included ids are in, excluded ones out, sources within their bounds, tokens within the budget, roles kept."""
    kept_N, shunned_N = np.random.default_rng(7).standard_normal((2, ROWS))
    roles = (RoleLimit("kept", "protect", kept_N), RoleLimit("shunned", "avoid", shunned_N))
    limits = Limits(include=("row-5",), exclude=("row-0", "row-7"), sources={"web": (4, 12)})
    for one, role_limits in ((limits, ()), (Limits(tokens=400), ()), (Limits(), roles)):
        budget = ROWS if one.tokens else 20
        problem = SelectionProblem(
            ArrayAttribution(made_matrix()), GROUPS, budget, 7, FACTS, one, FEATURES, role_limits=role_limits
        )
        try:
            require_kept(make().select(problem), problem, "the selector")
        except ConfigError as error:
            raise AssertionError(
                f"{error}; influray.selectors.admission.Admission keeps them for who asks it of every row"
            ) from None


SELECTOR_LAWS = (fills_the_budget, is_a_pure_function, blocks_do_not_show, keeps_the_limits)
