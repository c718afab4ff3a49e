"""Laws that every selector of the registry and every published method obeys."""

from __future__ import annotations

import numpy as np
import pytest

from influray.protocols import DataError, SelectionProblem
from influray.registry import METHODS, SELECTORS, resolve, resolve_method
from influray.selectors.admission import Admission
from influray.selectors.api import make_selector, run_selector, select
from influray.selectors.row_facts import ArrayFeatures
from influray.store.attribution import ArrayAttribution
from influray.testing.selectors import FEATURES, GROUPS, SELECTOR_LAWS, made_matrix

ALL = sorted({*SELECTORS, *METHODS})
DRAWN = [
    "random",
    "strata",
    "gumbel_top_k",
    "dsir",
    "group",  # its clusters begin at rows that are drawn
    "weighted_draw",
]  # chance goes by the row's place, so another row order is another draw
UNSCORED = ["random", "longest"]  # methods that do not look at the scores
COMPARING = ["knn_kde"]  # methods that look at the features too, and so rank no row by its scores alone
SCORED = [name for name in ALL if name not in UNSCORED]
# The order of the columns is the order of the turns, as published: another order gives another selection.
IN_TURN = ["quota", "round_robin", "rr", "rr_tasks"]
STANDARDISED = [
    *("balanced", "bids", "normalised_instance_max", "round_robin", "rr", "layers", "facility_location"),
    "strata-zscore",  # "-NORMALISER": the method with another normaliser than its own
    *(f"balanced-{name}" for name in ("robust", "rank", "minmax")),
    *(f"top_k-{name}" for name in ("zscore", "robust", "rank", "minmax")),
    *(f"quota-{name}" for name in ("zscore", "robust", "rank", "minmax")),
]
# A larger budget only adds at the end; not so where shares, or a step, are parts of the budget.
PREFIX = [name for name in ALL if name not in ("quota", "strata", "interaction")]
# A row that comes second in two columns and first in none, or that has all mass of two, is won by the lower one: which
# one, the order decides.
COLUMNS_TIE = ["betr", "uot"]
TOKENS = np.random.default_rng(9).permutation(90) + 1
UNITS = np.random.default_rng(8).standard_normal((90, 6))


def run(method: str, score_NT, budget: int = 30, groups=GROUPS, seed: int = 7, block_rows: int = 2048, order=slice(90)):
    method, _, normaliser = method.partition("-")
    source = ArrayAttribution(score_NT, block_rows)
    rows = len(score_NT)
    facts, features = {"tokens": TOKENS[order][:rows]}, ArrayFeatures(UNITS[order][:rows], rows)
    problem = SelectionProblem(source, groups, budget, seed, facts, features=features)
    return run_selector(problem, method, {"normaliser": normaliser} if normaliser else {})


def same(one, other) -> bool:
    return all(getattr(one, name).tobytes() == getattr(other, name).tobytes() for name in ("rows", "merit", "column"))


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("law", SELECTOR_LAWS, ids=lambda law: law.__name__)
def test_it_obeys_the_laws_of_its_seam(method, law):
    name, options = resolve_method(method)
    law(lambda: make_selector(name, options))


@pytest.mark.parametrize("method", [name for name in ALL if name not in DRAWN])
def test_row_order_does_not_change_the_selection(method):
    score_NT = made_matrix()
    order = np.random.default_rng(1).permutation(90)
    found, moved = run(method, score_NT), run(method, score_NT[order], order=order)
    assert order[moved.rows].tolist() == found.rows.tolist()
    np.testing.assert_allclose(moved.merit, found.merit, rtol=1e-9, atol=1e-12)
    assert moved.column.tolist() == found.column.tolist()


@pytest.mark.parametrize("method", [name for name in ALL if name not in IN_TURN])
def test_column_order_does_not_change_the_selection(method):
    score_NT = made_matrix()
    order = np.random.default_rng(2).permutation(10)
    found, moved = run(method, score_NT), run(method, score_NT[:, order], groups=tuple(GROUPS[j] for j in order))
    assert moved.rows.tolist() == found.rows.tolist()
    if method not in COLUMNS_TIE:
        assert [order[j] if j >= 0 else -1 for j in moved.column] == found.column.tolist()


@pytest.mark.parametrize("method", PREFIX)
def test_a_larger_budget_only_adds_at_the_end(method):
    whole = run(method, made_matrix(), 90)
    for budget in (1, 2, 17, 89):
        assert run(method, made_matrix(), budget).rows.tolist() == whole.rows[:budget].tolist()


@pytest.mark.parametrize("method", STANDARDISED)
def test_a_positive_affine_map_of_columns_changes_nothing(method):
    score_NT = made_matrix()
    rng = np.random.default_rng(3)
    found = run(method, score_NT)
    moved = run(method, score_NT * np.exp(3 * rng.standard_normal(10)) + 5 * rng.standard_normal(10))
    assert moved.rows.tolist() == found.rows.tolist()
    assert moved.column.tolist() == found.column.tolist()
    np.testing.assert_allclose(moved.merit, found.merit, rtol=1e-9)


@pytest.mark.parametrize("method", ALL)
def test_a_non_finite_column_is_as_if_it_were_not_there(method):
    score_NT = made_matrix()
    kept = [j for j in range(10) if j not in (2, 6)]
    without = run(method, score_NT[:, kept], groups=tuple(GROUPS[j] for j in kept))
    score_NT[11, 2], score_NT[80, 6] = np.nan, np.inf
    found = run(method, score_NT)
    assert found.rows.tolist() == without.rows.tolist()
    assert found.merit.tobytes() == without.merit.tobytes()
    assert found.column.tolist() == [kept[j] if j >= 0 else -1 for j in without.column]


@pytest.mark.parametrize("method", STANDARDISED)
def test_a_constant_column_is_as_if_it_were_not_there(method):
    score_NT = made_matrix()
    kept = [j for j in range(10) if j != 4]
    without = run(method, score_NT[:, kept], groups=tuple(GROUPS[j] for j in kept))
    score_NT[:, 4] = 1e6
    found = run(method, score_NT)
    assert found.rows.tolist() == without.rows.tolist()
    assert found.merit.tobytes() == without.merit.tobytes()


@pytest.mark.parametrize("method", ALL)
def test_one_column_one_task_and_one_row_are_fine(method):
    score_N1 = made_matrix()[:, :1]
    found = run(method, score_N1, groups=("a",))
    if method in SCORED and method not in (*DRAWN, *COMPARING):
        assert found.rows.tolist() == np.argsort(-score_N1[:, 0], kind="stable")[:30].tolist()
    assert len(run(method, made_matrix(), groups=("a",) * 10).rows) == 30
    if method in STANDARDISED:
        with pytest.raises(DataError, match="constant"):  # one row has no spread to standardise by
            run(method, made_matrix()[:1], budget=1)
    else:
        assert run(method, made_matrix()[:1], budget=1).rows.tolist() == [0]


@pytest.mark.parametrize("method", ALL)
def test_narrow_and_scattered_arrays_are_read_as_their_values(method):
    narrow = made_matrix().astype(np.float16)
    wide = np.zeros((180, 20), np.float32)
    wide[1::2, ::2] = narrow
    expected = run(method, narrow.astype(np.float32))
    assert same(run(method, narrow), expected)
    assert same(run(method, wide[1::2, ::2]), expected)
    assert same(run(method, np.asfortranarray(narrow)), expected)


@pytest.mark.parametrize("method", ALL)
def test_the_python_function_gives_the_same(method):
    found = select(made_matrix(), list(GROUPS), 30, method=method, seed=7, rows={"tokens": TOKENS}, features=UNITS)
    assert same(found, run(method, made_matrix()))
    assert found.method == method


class Limited(Admission):
    """Two rows are in from the start, two out; some are refused when proposed, and each pick bars others in bulk."""

    def __init__(self, problem):
        super().__init__(problem)
        self.forced = np.array([12, 40])
        self.barred = set()
        self._shut([3, 77])

    def take(self, position):
        assert position in self.forced or len(self._chosen) >= 2, "forced rows come first"
        if position % 5 == 1:
            self._shut([position])
            return False
        taken = super().take(position)
        self._shut([near for near in (position - 7, position + 11) if near not in self.forced])
        return taken

    @property
    def full(self):
        return super().full or not self.open_N.any()

    def finish(self):
        assert self.full

    def _shut(self, positions):
        barred = [p for p in positions if 0 <= p < len(self.open_N) and self.open_N[p]]
        self.barred |= set(barred)
        self._bar(np.array(barred, np.int64), "this test")


@pytest.mark.parametrize("method", ALL)
@pytest.mark.parametrize("budget", [2, 17, 90])
def test_limits_are_kept_whatever_is_refused_forced_or_barred(monkeypatch, method, budget):
    made = []

    def limited(problem):
        made.append(Limited(problem))
        return made[-1]

    name, options = resolve_method(method)
    module = __import__(resolve("selectors", name, "method").__module__, fromlist=["Admission"])
    monkeypatch.setattr(module, "Admission", limited)
    source = ArrayAttribution(made_matrix(), 13)
    found = make_selector(name, options).select(
        SelectionProblem(source, GROUPS, budget, 7, {"tokens": TOKENS}, features=FEATURES)
    )
    rows = found.rows.tolist()
    assert sorted(rows[:2]) == [12, 40]
    assert len(rows) == len(set(rows)) == len(found.merit) == len(found.column)
    assert rows == made[0].chosen.tolist()
    assert not set(rows) & made[0].barred
    assert len(rows) == budget or not made[0].open_N.any(), "it may stop only when nothing is left to propose"
    if name != "random":
        assert not np.isnan(found.merit).any(), "rows that are forced in have a merit as well"


@pytest.mark.parametrize("method", SCORED)
def test_a_row_without_a_finite_score_is_named_and_no_usable_column_says_why(method):
    score_NT = made_matrix()
    score_NT[17] = np.nan
    with pytest.raises(DataError, match="row 17 has no finite score"):
        run(method, score_NT)
    score_NT = made_matrix()
    score_NT[np.arange(10), np.arange(10)] = np.inf
    with pytest.raises(DataError, match="none of the 10 columns can be used .* non-finite"):
        run(method, score_NT)


@pytest.mark.parametrize("method", ALL)
def test_a_matrix_of_one_value_is_ranked_by_row_or_refused(method):
    same_NT = np.full((90, 10), 0.25)
    if method in STANDARDISED:
        with pytest.raises(DataError, match="constant"):
            run(method, same_NT)
    elif method in (*DRAWN, *COMPARING, "longest"):
        assert len(set(run(method, same_NT).rows.tolist())) == 30
    else:
        assert run(method, same_NT).rows.tolist() == list(range(30)), "ties go to the lowest row"
