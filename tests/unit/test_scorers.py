"""The inner product scorer against float64 algebra, and the weights of checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from influray.protocols import ConfigError
from influray.scorers import products
from influray.scorers.inner_product import InnerProduct
from influray.scorers.options import make_scorer
from influray.scorers.weights import checkpoint_weights
from influray.testing.scorers import taken
from tests.features import made_for, make_rows, plain, scaled


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_the_score_is_the_weighted_inner_product_of_unit_rows_or_of_the_rows_themselves(similarity):
    pool, target, stores = make_rows(40, 257, 3), make_rows(6, 257, 3, seed=1), made_for(3)
    expected = np.zeros((40, 6))
    for k, weight in enumerate(stores.weights):
        g, v = pool.feature_KBD[k].astype(np.float64), target.feature_KBD[k].astype(np.float64)
        if similarity == "dot":
            g, v = plain(pool, k), plain(target, k)
        expected += weight * g @ v.T
    found = InnerProduct(stores, similarity).score(pool, target, {})
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 3e-6


def test_norms_matter_to_the_dot_product_alone():
    pool, target, stores = make_rows(9, 32), make_rows(3, 32, seed=1), made_for()
    for similarity, factor in (("cosine", 1), ("dot", 6)):
        scorer = InnerProduct(stores, similarity)
        twice = scorer.score(scaled(pool, 2), scaled(target, 3), {})
        np.testing.assert_allclose(twice, factor * scorer.score(pool, target, {}), rtol=1e-5, atol=1e-7)


def test_a_planted_copy_of_a_target_ranks_first_and_its_opposite_last():
    pool, target = make_rows(300, 64), make_rows(4, 64, seed=1)
    for k in range(2):
        pool.feature_KBD[k][123], pool.feature_KBD[k][9] = target.feature_KBD[k][2], -target.feature_KBD[k][2]
    column = InnerProduct(made_for()).score(pool, target, {})[:, 2]
    assert (column.argmax(), column.argmin()) == (123, 9)


def test_a_row_scores_the_same_in_a_block_of_any_size(monkeypatch):
    monkeypatch.setattr(products, "BLOCK_ROWS", 16)
    pool, target = make_rows(50, 129), make_rows(5, 129, seed=1)
    scorer = InnerProduct(made_for())
    whole = scorer.score(pool, target, {})
    assert scorer.score(pool, target, {}).tobytes() == whole.tobytes()
    for rows in (slice(0, 1), slice(7, 20), slice(15, 50, 3)):
        assert np.abs(scorer.score(taken(pool, rows), target, {}) - whole[rows]).max() < 5e-7


def test_another_similarity_is_named_by_its_key():
    with pytest.raises(ConfigError, match=r"attribution\.options\.similarity: found 'l2', expected cosine or dot"):
        make_scorer("inner_product", made_for(), {"similarity": "l2"})


def test_only_the_ratio_of_the_weights_matters():
    assert checkpoint_weights("uniform", [1e-5, 3e-5]) == (0.5, 0.5)
    assert checkpoint_weights("learning_rate", [1e-5, 3e-5]) == pytest.approx((0.25, 0.75))
    assert checkpoint_weights((2, 6), [1e-5, 3e-5]) == (0.25, 0.75)
    assert sum(checkpoint_weights("learning_rate", [1.6877e-5, 1.2859e-5, 7.703e-6, 2.5616e-6])) == pytest.approx(1)


def test_a_checkpoint_of_learning_rate_0_weighs_nothing_and_not_all_may():
    assert checkpoint_weights("learning_rate", [0.0, 2e-5]) == (0.0, 1.0)
    with pytest.raises(ConfigError, match=r"attribution\.weights: all checkpoints were trained at learning rate 0"):
        checkpoint_weights("learning_rate", [0.0, 0.0])


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ((1.0,), r"attribution\.weights: 1 weights for 2 checkpoints"),
        ((1.0, 0.0), r"attribution\.weights\.1: found 0\.0"),
        ((-1.0, 1.0), r"attribution\.weights\.0: found -1\.0"),
        ((1.0, float("nan")), r"attribution\.weights\.1: found nan"),
        ((1.0, float("inf")), r"attribution\.weights\.1: found inf"),
        ("loss", r"attribution\.weights: found 'loss', expected learning_rate, uniform or a list of 2"),
    ],
)
def test_wrong_weights_are_named_by_their_key(weights, message):
    with pytest.raises(ConfigError, match=message):
        checkpoint_weights(weights, [1e-5, 2e-5])
