"""Laws that every scorer of the registry obeys."""

from __future__ import annotations

import numpy as np
import pytest

from influray.registry import SCORERS, resolve

# What a scorer is constructed with for two checkpoints; a new scorer needs a line here.
ARGUMENTS = {"inner_product": {"weights": (1.0, 2.0)}}


def unit_rows(rows: int, seed: int) -> np.ndarray:
    wide = np.random.default_rng(seed).standard_normal((rows, 48))
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


@pytest.fixture(params=sorted(SCORERS))
def scorer(request):
    return resolve("scorers", request.param, "attribution.scorer")(**ARGUMENTS[request.param])


POOL = [unit_rows(30, 0), unit_rows(30, 1)]
TARGET = [unit_rows(5, 2), unit_rows(5, 3)]


def test_it_returns_one_float32_score_per_row_and_target(scorer):
    found = scorer.score(POOL, TARGET)
    assert found.shape == (30, 5)
    assert found.dtype == np.float32
    assert np.isfinite(found).all()


def test_it_is_a_pure_function(scorer):
    before = [block.copy() for block in (*POOL, *TARGET)]
    assert scorer.score(POOL, TARGET).tobytes() == scorer.score(POOL, TARGET).tobytes()
    assert all(np.array_equal(a, b) for a, b in zip(before, (*POOL, *TARGET), strict=True))


def test_rows_and_targets_in_another_order_give_the_same_scores_in_that_order(scorer):
    found = scorer.score(POOL, TARGET)
    order, turn = np.random.default_rng(0).permutation(30), np.array([3, 0, 4, 2, 1])
    moved = scorer.score([g[order] for g in POOL], [v[turn] for v in TARGET])
    np.testing.assert_allclose(moved, found[order][:, turn], atol=1e-6)


def test_a_row_does_not_depend_on_the_others(scorer):
    found = scorer.score(POOL, TARGET)
    alone = np.concatenate([scorer.score([g[i : i + 1] for g in POOL], TARGET) for i in range(30)])
    np.testing.assert_allclose(alone, found, atol=1e-6)


def test_a_copy_of_a_target_helps_it_most_and_its_opposite_least(scorer):
    pool = [block.copy() for block in POOL]
    for k in range(2):
        pool[k][4], pool[k][9] = TARGET[k][1], -TARGET[k][1]
    column = scorer.score(pool, TARGET)[:, 1]
    assert (column.argmax(), column.argmin()) == (4, 9)
