"""The inner product scorer against float64 algebra, and the weights of checkpoints."""

from __future__ import annotations

import numpy as np
import pytest

from influray.protocols import ConfigError
from influray.scorers import inner_product
from influray.scorers.inner_product import InnerProduct, checkpoint_weights


def unit_rows(rows: int, dimension: int, seed: int) -> np.ndarray:
    wide = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


def features(rows: int, targets: int, dimension: int, checkpoints: int) -> tuple[list[np.ndarray], list[np.ndarray]]:
    pool = [unit_rows(rows, dimension, k) for k in range(checkpoints)]
    return pool, [unit_rows(targets, dimension, 100 + k) for k in range(checkpoints)]


def test_the_score_is_the_weighted_inner_product_of_the_stored_rows():
    pool, target = features(40, 6, 257, 3)
    rates = [1.7e-5, 1.3e-5, 2.5e-6]
    expected = np.zeros((40, 6))
    for rate, g, v in zip(rates, pool, target, strict=True):
        expected += rate / sum(rates) * (g.astype(np.float64) @ v.astype(np.float64).T)
    found = InnerProduct(rates).score(pool, target)
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() < 1e-6


def test_a_planted_copy_of_a_target_ranks_first():
    pool, target = features(300, 4, 64, 2)
    for k in range(2):
        pool[k][123] = target[k][2]
    assert InnerProduct([1, 2]).score(pool, target)[:, 2].argmax() == 123


def test_a_row_scores_the_same_in_a_block_of_any_size(monkeypatch):
    monkeypatch.setattr(inner_product, "BLOCK_ROWS", 16)
    pool, target = features(50, 5, 129, 2)
    scorer = InnerProduct([1, 3])
    whole = scorer.score(pool, target)
    assert scorer.score(pool, target).tobytes() == whole.tobytes()
    for rows in (slice(0, 1), slice(7, 20), slice(15, 50, 3)):
        assert np.abs(scorer.score([g[rows] for g in pool], target) - whole[rows]).max() < 5e-7


def test_read_only_maps_and_an_empty_shard_are_fine():
    pool, target = features(3, 2, 8, 1)
    pool[0].flags.writeable = False
    assert InnerProduct([1]).score(pool, target).shape == (3, 2)
    assert InnerProduct([1]).score([pool[0][:0]], target).shape == (0, 2)


def test_only_the_ratio_of_the_weights_matters():
    assert InnerProduct([1, 3]).weights == InnerProduct([0.25, 0.75]).weights == (0.25, 0.75)
    assert checkpoint_weights("uniform", [1e-5, 3e-5]) == (0.5, 0.5)
    assert checkpoint_weights("learning_rate", [1e-5, 3e-5]) == pytest.approx((0.25, 0.75))
    assert checkpoint_weights((2, 6), [1e-5, 3e-5]) == (0.25, 0.75)
    assert sum(checkpoint_weights("learning_rate", [1.6877e-5, 1.2859e-5, 7.703e-6, 2.5616e-6])) == pytest.approx(1)


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
