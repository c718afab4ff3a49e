"""AID and THI against their definitions, written out."""

from __future__ import annotations

import numpy as np
import pytest

from influray.evaluation import balance as balance_module
from influray.evaluation.balance import measure_balance
from influray.protocols import DataError
from influray.selectors.api import select
from influray.store.attribution import ArrayAttribution

GROUPS = ("math", "code", "math", "chat", "code", "math")


def source(seed: int = 0) -> ArrayAttribution:
    score_NT = np.random.default_rng(seed).standard_normal((200, 6)) * [1, 10, 0.1, 3, 1, 1] + 4
    return ArrayAttribution(score_NT.astype(np.float32))


def standardised(matrix: ArrayAttribution) -> np.ndarray:
    score_NT = np.concatenate([block for _, block in matrix.blocks()]).astype(np.float64)
    return (score_NT - score_NT.mean(axis=0)) / score_NT.std(axis=0)


def test_aid_and_thi_are_what_their_definitions_say():
    matrix = source()
    rows = np.random.default_rng(1).permutation(200)[:57]
    found = measure_balance(matrix, matrix.stats, GROUPS, rows)
    z_nT = standardised(matrix)[rows]
    np.testing.assert_allclose(found.aid_T, z_nT.mean(axis=0), rtol=1e-9, atol=1e-12)
    by_task = {"math": 0, "code": 0, "chat": 0}
    by_instance = dict(by_task)
    for z_T in z_nT:
        means = {task: np.mean([z for z, group in zip(z_T, GROUPS, strict=True) if group == task]) for task in by_task}
        by_task[max(means, key=lambda task: means[task])] += 1
        by_instance[GROUPS[int(z_T.argmax())]] += 1
    assert found.thi_task == by_task
    assert found.thi_instance == by_instance
    math = found.aid_by_task()["math"]
    value = z_nT.mean(axis=0)[[0, 2, 5]]
    assert math is not None
    assert (math.mean, math.min, math.max, math.std) == pytest.approx(
        (value.mean(), value.min(), value.max(), value.std())
    )


def test_the_whole_pool_has_no_influence_beyond_its_own_mean():
    matrix = source()
    found = measure_balance(matrix, matrix.stats, GROUPS, np.arange(200))
    assert np.abs(found.aid_T).max() < 1e-14
    assert sum(found.thi_task.values()) == sum(found.thi_instance.values()) == 200


@pytest.mark.parametrize("rows_at_once", [1, 7, 57])
def test_blocks_of_any_size_give_the_same(monkeypatch, rows_at_once):
    matrix, rows = source(), np.arange(0, 171, 3)
    whole = measure_balance(matrix, matrix.stats, GROUPS, rows)
    monkeypatch.setattr(balance_module, "BLOCK_ROWS", rows_at_once)
    cut = measure_balance(matrix, matrix.stats, GROUPS, rows)
    np.testing.assert_allclose(cut.aid_T, whole.aid_T, rtol=1e-12, atol=1e-14)
    assert (cut.thi_task, cut.thi_instance) == (whole.thi_task, whole.thi_instance)


def test_a_task_without_a_usable_column_has_no_aid_and_wins_nothing():
    score_NT = np.concatenate([block for _, block in source().blocks()])
    score_NT[:, 3] = 1e9
    matrix = ArrayAttribution(score_NT)
    found = measure_balance(matrix, matrix.stats, GROUPS, np.arange(50))
    assert np.isnan(found.aid_T).tolist() == [False, False, False, True, False, False]
    assert found.aid_by_task()["chat"] is None
    assert found.thi_task["chat"] == found.thi_instance["chat"] == 0


def test_bids_is_more_even_over_the_tasks_than_less():
    rng = np.random.default_rng(2)
    score_NT = rng.standard_normal((500, 6)) * [1, 5, 1, 0.2, 5, 1]
    matrix = ArrayAttribution(score_NT)

    def spread(method):
        rows = select(score_NT, GROUPS, 50, method=method).rows
        aid = measure_balance(matrix, matrix.stats, GROUPS, rows).aid_by_task()
        return np.std([value.mean for value in aid.values() if value is not None])

    assert spread("bids") < 0.5 * spread("less")


def test_nothing_to_measure_is_an_error():
    matrix = source()
    with pytest.raises(DataError, match="0 rows are chosen"):
        measure_balance(matrix, matrix.stats, GROUPS, np.zeros(0, np.int64))
    flat = ArrayAttribution(np.ones((5, 6)))
    with pytest.raises(DataError, match="0 of 6 columns"):
        measure_balance(flat, flat.stats, GROUPS, np.arange(5))
