"""Influence foretold by a linear head and by a network: against the plain versions, planted answers, and what is wrong."""

from __future__ import annotations

import logging

import numpy as np
import pytest

from influray.protocols import ConfigError, DataError
from influray.scorers.influence_model import InfluenceModel
from influray.scorers.propagation import folds, joined
from influray.scorers.surrogate import Surrogate
from tests.features import make_rows
from tests.reference.propagated import linear_prediction, network_prediction
from tests.unit.test_landmarks import COLUMNS, STORES, fitted, write

KINDS = {"influence_model": InfluenceModel, "surrogate": Surrogate}


def vectors_of(pool) -> np.ndarray:
    return joined(pool, STORES.weights)


@pytest.mark.parametrize("rows", [12, 45])  # fewer and more than numbers of a vector
def test_a_linear_head_is_that_of_the_normal_equations_held_out_rows_by_refitting(rows, tmp_path):
    pool, rng = make_rows(60, 12), np.random.default_rng(0)
    row_E, exact_ET = np.sort(rng.permutation(60)[: max(rows, 20)]), rng.normal(size=(max(rows, 20), 4)) + 3
    scorer = InfluenceModel(STORES, write(tmp_path, row_E, exact_ET), ridge=0.03, keep_exact=False)
    vector_ND, exact_ET = vectors_of(pool), exact_ET.astype(np.float32).astype(np.float64)
    expected = linear_prediction(vector_ND[row_E], exact_ET, vector_ND, 0.03)
    np.testing.assert_allclose(scorer.score(pool, pool, fitted(scorer, pool)), expected, atol=1e-5)
    learnt = scorer.learn(vector_ND[row_E], exact_ET, np.ones(4, bool), pool)
    for fold in folds(len(row_E)):
        rest = np.setdiff1d(np.arange(len(row_E)), fold)
        # A fit without a fold keeps the units of the ridge, which are those of all rows.
        units = [
            ((one - one.mean(axis=0)) ** 2).sum(axis=1).mean() for one in (vector_ND[row_E], vector_ND[row_E][rest])
        ]
        alone = linear_prediction(
            vector_ND[row_E][rest], exact_ET[rest], vector_ND[row_E][fold], 0.03 * units[0] / units[1]
        )
        np.testing.assert_allclose(learnt["foretold"][fold], alone, atol=1e-8)


@pytest.mark.parametrize("decay", [0.0, 0.5])
def test_a_network_is_the_one_that_is_trained_on_all_pairs_side_by_side(decay, tmp_path):
    pool, rng = make_rows(110, 5), np.random.default_rng(1)
    row_E, exact_ET = np.arange(100), rng.normal(size=(100, 4)) * [1, 5, 0.1, 2] + [0, 3, 0, -1]
    options = {"hidden": 7, "epochs": 4, "learning_rate": 0.01, "weight_decay": decay, "seed": 3}
    scorer = Surrogate(STORES, write(tmp_path, row_E, exact_ET), keep_exact=False, **options)
    vector_ND, exact_ET = vectors_of(pool), exact_ET.astype(np.float32).astype(np.float64)
    expected = network_prediction(vector_ND[:100], vector_ND[:4], exact_ET, vector_ND, 7, 4, 0.01, decay, 3)
    np.testing.assert_allclose(scorer.score(pool, pool, fitted(scorer, pool)), expected, atol=1e-5)


def test_what_is_linear_is_foretold_by_the_head_and_products_of_row_and_target_by_the_network(tmp_path, caplog):
    pool, rng = make_rows(400, 4), np.random.default_rng(0)
    vector_ND = vectors_of(pool)
    linear_NT = vector_ND @ rng.normal(size=(vector_ND.shape[1], 4))
    product_NT = vector_ND @ vector_ND[:4].T
    row_E = np.sort(rng.permutation(400)[:250])
    others = np.setdiff1d(np.arange(400), row_E)
    with caplog.at_level(logging.INFO):
        for name, true_NT in (("influence_model", linear_NT), ("surrogate", product_NT)):
            scorer = KINDS[name](STORES, write(tmp_path / name, row_E, true_NT[row_E]))
            state = fitted(scorer, pool)
            score_NT = scorer.score(pool, pool, state)
            correlations = [np.corrcoef(score_NT[others, t], true_NT[others, t])[0, 1] for t in range(4)]
            assert min(correlations) > 0.9, name
            assert scorer.findings(state)["held_out"] > 0.85, name
            np.testing.assert_array_equal(score_NT[row_E], true_NT[row_E].astype(np.float32))
    assert not [one for one in caplog.records if one.levelno >= logging.WARNING]


@pytest.mark.parametrize("name", list(KINDS))
def test_columns_without_an_order_take_no_part_and_noise_is_warned_of(name, tmp_path, caplog):
    pool, rng = make_rows(90, 6), np.random.default_rng(7)
    exact_ET = rng.normal(size=(80, 4))
    exact_ET[3, 1], exact_ET[:, 2] = np.nan, 0.25
    scorer = KINDS[name](STORES, write(tmp_path, np.arange(80), exact_ET))
    state = fitted(scorer, pool)
    score_NT = scorer.score(pool, pool, state)
    assert np.isnan(score_NT[80:, 1]).all()
    np.testing.assert_allclose(score_NT[:, 2], 0.25)
    assert np.isfinite(score_NT[:, [0, 3]]).all()
    assert [one is None for one in scorer.findings(state)["columns"]] == [False, True, True, False]
    assert "little can be foretold from these features" in caplog.text


@pytest.mark.parametrize("name", list(KINDS))
def test_a_fit_of_nothing_but_constant_columns_is_their_constants(name, tmp_path):
    pool = make_rows(40, 6)
    scorer = KINDS[name](STORES, write(tmp_path, np.arange(30), np.full((30, 4), 0.5)))
    np.testing.assert_allclose(scorer.score(pool, pool, fitted(scorer, pool)), 0.5)


def test_the_seed_starts_the_network_and_the_order_of_exact_rows_is_nothing(tmp_path):
    pool, rng = make_rows(50, 6), np.random.default_rng(0)
    exact_ET, order = rng.normal(size=(40, 4)), rng.permutation(40)
    places = [write(tmp_path / "a", np.arange(40), exact_ET), write(tmp_path / "b", order, exact_ET[order])]
    one, again = (fitted(Surrogate(STORES, place), pool) for place in places)
    assert {key: found.tobytes() for key, found in one.items()} == {
        key: found.tobytes() for key, found in again.items()
    }
    assert not np.array_equal(fitted(Surrogate(STORES, places[0], seed=1), pool)["of_row"], one["of_row"])


def test_rows_that_are_all_one_tell_nothing(tmp_path):
    pool = make_rows(40, 6)
    for block in pool.feature_KBD:
        block[:] = block[0]
    with pytest.raises(DataError, match=r"attribution\.options\.exact: the 30 exact rows have the same feature"):
        fitted(InfluenceModel(STORES, write(tmp_path, np.arange(30), np.ones((30, 4)))), pool)


def test_a_surrogate_needs_the_vectors_of_the_targets(tmp_path):
    pool, rng = make_rows(40, 6), np.random.default_rng(0)
    scorer = Surrogate(STORES, write(tmp_path, np.arange(30), rng.normal(size=(30, 4))))
    vector_LD, score_LT = vectors_of(pool)[:30], rng.normal(size=(30, 4))
    without = make_rows(3, 6)  # rows 0, 1 and 2 of the targets
    with pytest.raises(DataError, match=r"the target 'y' has no feature in this run"):
        scorer.learn(vector_LD, score_LT, np.ones(4, bool), without)
    scorer.exact.columns = type(COLUMNS)((-1,) * 4, COLUMNS.ids, COLUMNS.tasks)
    with pytest.raises(DataError, match=r"are not those of single targets.*take influence_model or landmarks"):
        scorer.learn(vector_LD, score_LT, np.ones(4, bool), pool)


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("influence_model", {"ridge": 0}, "ridge"),
        ("influence_model", {"width": 1.0}, "no such option"),
        ("surrogate", {"hidden": 0}, "hidden"),
        ("surrogate", {"epochs": 0}, "epochs"),
        ("surrogate", {"learning_rate": -1.0}, "learning_rate"),
    ],
)
def test_options_out_of_range_are_refused(name, options, message):
    from influray.scorers.options import make_scorer

    with pytest.raises(ConfigError, match=message):
        make_scorer(name, STORES, {"exact": "x", **options})
