"""What new rows add to what is there, against plain loops; which of them are copies."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from influray.evaluation import neighbours
from influray.evaluation.copies import Text, same_text_earlier
from influray.evaluation.neighbours import near_earlier
from influray.evaluation.worth import expected_gain
from influray.planning.adds import Columns, best_subset
from influray.store.attribution import ArrayAttribution
from tests.reference import worth

GROUPS = ("a", "a", "a", "b", "c", "c")
TASKS = ("a", "b", "c")


class Vectors:
    """Rows in memory, as those of a datastore are read."""

    def __init__(self, row_NF: np.ndarray) -> None:
        self._row_NF = row_NF.astype(np.float32)
        self.dimension = row_NF.shape[1]

    def __len__(self) -> int:
        return len(self._row_NF)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        for start in range(0, len(self), size):
            yield start, self._row_NF[start : start + size].copy()

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self._row_NF[positions]


@pytest.mark.parametrize("count", [1, 2, 5, 8, 9])
@pytest.mark.parametrize("least", [-3.0, 0.0, 0.4, 5.0])
def test_the_expected_gain_is_the_mean_over_all_draws(count, least):
    random = np.random.default_rng(count)
    z_n = np.round(random.standard_normal(9), 1)  # with equal values
    assert expected_gain(z_n, least, count) == pytest.approx(worth.expected_gain(z_n, least, count), abs=1e-14)


def test_the_expected_gain_grows_with_the_rows_and_is_exact_for_one_and_for_all():
    z_n = np.random.default_rng(0).standard_normal(20_000)
    gains = [expected_gain(z_n, 1.0, count) for count in (1, 10, 1000, 20_000)]
    assert gains[0] == pytest.approx(np.maximum(z_n - 1, 0).mean(), rel=1e-12)
    assert gains[-1] == z_n.max() - 1
    assert gains == sorted(gains)
    assert expected_gain(z_n, z_n.max(), 1000) == 0.0


def columns(random: np.random.Generator, chosen: int) -> Columns:
    mean_C, std_C = random.standard_normal(6), random.uniform(0.5, 2, 6)
    best_C = (mean_C + std_C * (random.standard_normal((chosen, 6)) - 0.5).max(axis=0)).astype(np.float32)
    help_C = np.maximum((best_C.astype(np.float64) - mean_C) / std_C, 0)
    return Columns(np.array([0, 1, 2, 4, 6, 7]), GROUPS, TASKS, mean_C, std_C, best_C, help_C)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("most", [1, 4, 40])
def test_the_best_subset_is_the_greedy_one_and_ends_where_nothing_is_added(seed, most):
    random = np.random.default_rng(seed)
    known = columns(random, 1 + 2 * seed)
    score_nT = random.standard_normal((40, 8)).astype(np.float32)
    score_nT[7] = score_nT[3]  # a copy
    clean_n = np.ones(40, bool)
    clean_n[random.integers(0, 40, 5)] = False
    matrix = ArrayAttribution(score_nT, block_rows=7)
    found = best_subset(known, matrix, clean_n, most)  # pyright: ignore[reportArgumentType]
    z_nC = known.standardised(score_nT)
    places, gains = worth.best_subset(np.where(clean_n[:, None], z_nC, -np.inf), known.help_C, GROUPS, most)
    assert found.rows.tolist() == places
    assert found.gains == pytest.approx(gains, abs=1e-12)
    expected_C = worth.cover(z_nC[places]) if places else np.zeros(6)
    np.testing.assert_allclose(found.gain_C, np.maximum(expected_C - known.help_C, 0), atol=1e-12)
    by_task = worth.by_task(found.gain_C, GROUPS)
    assert known.by_task(found.gain_C) == pytest.approx(by_task)
    assert sum(found.gains) == pytest.approx(np.mean(list(by_task.values())))
    assert 0 < len(found.rows) < 40


def test_rows_that_add_nothing_are_no_subset():
    random = np.random.default_rng(0)
    known = columns(random, 3)
    matrix = ArrayAttribution(np.full((5, 8), -9.0, np.float32))
    found = best_subset(known, matrix, np.ones(5, bool), 5)  # pyright: ignore[reportArgumentType]
    assert (found.rows.tolist(), found.gains) == ([], [])
    assert not found.gain_C.any()


@pytest.mark.parametrize("exact", [True, False])
def test_near_copies_of_rows_before_are_those_of_a_comparison_of_all(monkeypatch, exact):
    random = np.random.default_rng(1)
    pool_NF, new_nF = random.standard_normal((60, 24)), random.standard_normal((30, 24))
    new_nF[4] = 3 * pool_NF[50] + 1e-3 * random.standard_normal(24)  # of another length
    new_nF[9:25] = pool_NF[7]  # more than neighbours are looked for
    new_nF[27] = new_nF[26] + 1e-3 * random.standard_normal(24)
    if not exact:
        monkeypatch.setattr(neighbours, "MOST_PRODUCTS", 0)
    pair_E2, told = near_earlier(Vectors(pool_NF), Vectors(new_nF), 0.98)
    assert told == exact
    both = np.concatenate([pool_NF, new_nF])
    both /= np.linalg.norm(both, axis=1, keepdims=True)
    cosine = both @ both.T
    assert all(low < high and high >= 60 and cosine[low, high] >= 0.98 for low, high in pair_E2.tolist())
    label = neighbours.joined(pair_E2, 90)
    copies = {place for place in range(60, 90) if label[place] < place}
    assert copies == {p for p in range(60, 90) if (cosine[p, :p] >= 0.98).any()} == {64, *range(69, 85), 87}
    assert [int(label[place]) for place in (64, 69, 84, 87)] == [50, 7, 7, 86]


def test_rows_of_the_same_text_are_copies_of_the_first_that_has_it():
    new = [Text(row, prompt, "yes") for row, prompt in enumerate("abcabd")]
    pool = [Text(row, prompt, answer) for row, (prompt, answer) in enumerate([("b", "no"), ("b", "yes"), ("b", "yes")])]
    assert same_text_earlier(new, pool) == ({1: 1, 4: 1}, {3: 0})
    assert same_text_earlier(new, []) == ({}, {3: 0, 4: 1})
