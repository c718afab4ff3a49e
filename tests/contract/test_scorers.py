"""Laws that every scorer of the registry obeys."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from influray.plugins import permit
from influray.protocols import Arrays, Columns, ConfigError, FeatureRows, Scorer
from influray.registry import SCORERS
from influray.scorers.options import make_scorer
from influray.store.arrays import add_arrays
from tests.features import made_for, make_rows, taken

K, POOL_ROWS, TARGETS = 3, 40, 5
POOL = make_rows(POOL_ROWS, 24, K, seed=0)
TARGET = make_rows(TARGETS, 24, K, seed=1, groups=("sums", "reversals"))
COLUMNS = Columns(tuple(range(TARGETS)), tuple("vwxyz"), tuple(TARGET.group_B))
# What a scorer is made for where that is not the default; a new scorer that needs something else has a line here.
STORES: dict[str, dict[str, Any]] = {
    "datainf": {"blocks": "module", "bounds_K": ((0, 6, 12, 18, 24),) * K},
    "dsir": {"featurizer": "ngram", "bounds_K": ((0, 24),)},
    "bm25": {"featurizer": "ngram"},
    "el2n": {"featurizer": "loss"},
}


def fitted(scorer: Scorer, pool: FeatureRows, cuts: tuple[int, ...] = (0, 13, 27)) -> Arrays:
    """The state after all passes over the pool, cut into blocks at `cuts`."""
    state: Arrays = {}
    for number in range(1, scorer.passes + 1):
        total: dict[str, np.ndarray] = {}
        for start, stop in zip(cuts, (*cuts[1:], len(pool)), strict=True):
            add_arrays(total, scorer.sums(number, taken(pool, slice(start, stop)), TARGET, state))
        assert all(array.dtype == np.float64 for array in total.values())
        state = scorer.fit(number, total, TARGET, state)
        assert all(array.size for array in state.values()), "the store keeps no empty array"
    return state


@pytest.fixture(params=sorted(SCORERS))
def name(request) -> str:
    return request.param


@pytest.fixture
def scorer(name) -> Scorer:
    return make_scorer(name, made_for(K, **STORES.get(name, {})), {})


def test_it_returns_one_float32_score_per_row_and_column(scorer):
    found = scorer.score(POOL, TARGET, fitted(scorer, POOL))
    assert found.shape == (POOL_ROWS, len(scorer.columns(COLUMNS)))
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_a_column_is_a_target_or_says_that_it_is_none(scorer):
    columns = scorer.columns(COLUMNS)
    assert len(columns.rows) == len(columns.ids) == len(columns.tasks) >= 1
    for row, identity, task in zip(columns.rows, columns.ids, columns.tasks, strict=True):
        assert row == -1 or (identity, task) == (COLUMNS.ids[row], COLUMNS.tasks[row])


def test_it_is_a_pure_function(scorer):
    arrays = [
        *POOL.feature_KBD,
        *TARGET.feature_KBD,
        *(c for f in (*POOL.facts_KB, *TARGET.facts_KB) for c in f.values()),
    ]
    before = [array.copy() for array in arrays]
    state, again = fitted(scorer, POOL), fitted(scorer, POOL)
    assert {name: array.tobytes() for name, array in state.items()} == {n: a.tobytes() for n, a in again.items()}
    assert scorer.score(POOL, TARGET, state).tobytes() == scorer.score(POOL, TARGET, state).tobytes()
    assert all(np.array_equal(a, b) for a, b in zip(before, arrays, strict=True))


def test_rows_in_another_order_give_the_same_scores_in_that_order(scorer):
    found = scorer.score(POOL, TARGET, fitted(scorer, POOL))
    moved = taken(POOL, np.random.default_rng(0).permutation(POOL_ROWS))
    np.testing.assert_allclose(
        scorer.score(moved, TARGET, fitted(scorer, moved)), found[moved.row_B], rtol=1e-4, atol=1e-5
    )


def test_how_the_pool_is_cut_does_not_matter(scorer):
    whole = scorer.score(POOL, TARGET, fitted(scorer, POOL, cuts=(0,)))
    state = fitted(scorer, POOL, cuts=(0, 1, 2, 30))
    np.testing.assert_allclose(scorer.score(POOL, TARGET, state), whole, rtol=1e-4, atol=1e-5)
    alone = [scorer.score(taken(POOL, [i]), TARGET, state) for i in range(POOL_ROWS)]
    np.testing.assert_allclose(np.concatenate(alone), whole, rtol=1e-4, atol=1e-5)


def test_read_only_maps_and_an_empty_block_are_fine(scorer):
    for array in (*POOL.feature_KBD, *TARGET.feature_KBD):
        array.flags.writeable = False
    state = fitted(scorer, POOL)
    assert scorer.score(taken(POOL, slice(0, 0)), TARGET, state).shape == (0, len(scorer.columns(COLUMNS)))


def test_an_option_that_it_has_not_is_refused(name):
    with pytest.raises(ConfigError, match=r"attribution\.options\.similarty: .* has no such option"):
        make_scorer(name, made_for(K, **STORES.get(name, {})), {"similarty": 1})


def test_a_plug_in_is_made_like_a_method_of_the_table():
    permit(["influray.scorers.inner_product:InnerProduct"])
    plug_in = make_scorer("influray.scorers.inner_product:InnerProduct", made_for(K), {"similarity": "dot"})
    assert np.array_equal(
        plug_in.score(POOL, TARGET, {}),
        make_scorer("inner_product", made_for(K), {"similarity": "dot"}).score(POOL, TARGET, {}),
    )
