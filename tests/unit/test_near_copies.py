"""Near-copies of a large pool: what is planted is found, nothing else is, and what is told of it is true."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest

from influray.evaluation import near_copies as module
from influray.evaluation import neighbours
from influray.evaluation.audit import agreement
from influray.evaluation.copies import joined
from influray.evaluation.near_copies import equal_hashes, most_different, near_copies, row_signs
from influray.evaluation.neighbours import nearness
from tests.reference import near_copies as reference

NEAR = 0.98


class InMemory:
    """Vectors in memory, in the way of `store.vectors`."""

    def __init__(self, row_NF: np.ndarray) -> None:
        self._row_NF, self.dimension = row_NF, row_NF.shape[1]

    def __len__(self) -> int:
        return len(self._row_NF)

    def blocks(self, size: int) -> Iterator[tuple[int, np.ndarray]]:
        return ((start, self._row_NF[start : start + size].copy()) for start in range(0, len(self), size))

    def take(self, positions: np.ndarray) -> np.ndarray:
        return self._row_NF[positions]


def turned(row_F: np.ndarray, cosine: float, generator: np.random.Generator) -> np.ndarray:
    """A vector of this cosine with `row_F` and of another length."""
    unit_F = row_F / np.linalg.norm(row_F)
    aside_F = generator.standard_normal(len(row_F))
    aside_F -= (aside_F @ unit_F) * unit_F
    aside_F /= np.linalg.norm(aside_F)
    return generator.uniform(0.5, 2) * (cosine * unit_F + np.sqrt(1 - cosine**2) * aside_F)


def planted(rows: int, dimension: int, alike: float, seed: int = 0) -> tuple[np.ndarray, dict[float, list[list[int]]]]:
    """Rows of a falling spectrum of cosine about `alike` in the mean, and the pairs planted among them, by cosine."""
    generator = np.random.default_rng(seed)
    common_F = generator.standard_normal(dimension) / np.sqrt(dimension)
    wide_NF = generator.standard_normal((rows, dimension)) * np.arange(1, dimension + 1) ** -0.25
    wide_NF /= np.linalg.norm(wide_NF, axis=1, keepdims=True)
    row_NF = np.sqrt(1 - alike) * wide_NF + np.sqrt(alike) * common_F
    pairs: dict[float, list[list[int]]] = {}
    free = generator.permutation(rows).tolist()
    for cosine in (1.0, 0.995, 0.985, 0.97):
        pairs[cosine] = []
        for _ in range(rows // 40):
            one, other = free.pop(), free.pop()
            row_NF[other] = row_NF[one] if cosine == 1.0 else turned(row_NF[one], cosine, generator)
            pairs[cosine].append([one, other])
    return row_NF.astype(np.float32), pairs


def joined_share(pairs: list[list[int]], label_N: np.ndarray) -> float:
    return float(np.mean([label_N[one] == label_N[other] for one, other in pairs]))


@pytest.mark.parametrize("alike", [0.0, 0.5, 0.9])
def test_planted_copies_are_found_and_equal_ones_always(alike):
    row_NF, pairs = planted(4000, 96, alike)
    found_E2 = near_copies(InMemory(row_NF), NEAR)
    label_N = joined(found_E2, len(row_NF))
    share = {cosine: joined_share(some, label_N) for cosine, some in pairs.items()}
    assert share[1.0] == 1.0, "equal rows do not depend on chance"
    assert share[0.995] >= 0.99
    assert share[0.985] >= 0.95
    one_EF, other_EF = (row_NF[side].astype(np.float64) for side in found_E2.T)
    cosine_E = (one_EF * other_EF).sum(1) / np.linalg.norm(one_EF, axis=1) / np.linalg.norm(other_EF, axis=1)
    assert cosine_E.min() >= NEAR - 1e-6, "all that is found is compared exactly"
    again_E2 = near_copies(InMemory(row_NF), NEAR)
    assert found_E2.tolist() == again_E2.tolist()


def test_groups_are_those_of_comparing_every_row_with_every_other():
    row_NF, _ = planted(400, 32, 0.3, seed=1)
    row_NF[300:340] = row_NF[299]  # one row 41 times
    row_NF[340] = 0
    wanted = reference.near_copies(row_NF, NEAR)
    label_N = joined(near_copies(InMemory(row_NF), NEAR), len(row_NF))
    assert label_N.tolist() == reference.reachable([list(pair) for pair in wanted], len(row_NF))


def test_equal_rows_have_equal_hashes_and_others_do_not():
    row_NF, pairs = planted(2000, 7, 0.0)
    signs = row_signs(InMemory(row_NF))
    found = {tuple(pair) for pair in equal_hashes(signs.hash_N).tolist()}
    assert found == {(min(pair), max(pair)) for pair in pairs[1.0]}
    assert signs.word_ON.shape == (module.ORDERS, len(row_NF))
    assert equal_hashes(np.array([5, 9, 5, 5, 9], np.uint64)).tolist() == [[0, 2], [0, 3], [1, 4]]


def test_signs_differ_as_often_as_the_angle_says():
    generator = np.random.default_rng(3)
    signs = module.ORDERS * module.SIGNS
    for alike in (0.0, 0.6):
        row_NF, _ = planted(600, 64, alike, seed=5)
        other_NF = np.stack([turned(row_F, NEAR, generator) for row_F in row_NF]).astype(np.float32)
        found = row_signs(InMemory(np.concatenate([row_NF, other_NF])))
        one_ON, two_ON = np.split(found.word_ON, 2, axis=1)
        differ_N = np.bitwise_count(one_ON ^ two_ON).sum(axis=0, dtype=int)
        spread_N = found.spread_N[:600]
        assert spread_N.mean() == pytest.approx(1 - alike, abs=0.1)
        angle_N = np.arccos(1 - (1 - NEAR) / spread_N)
        assert differ_N.mean() / signs == pytest.approx(angle_N.mean() / np.pi, rel=0.05)
        assert (differ_N <= most_different(signs, spread_N, NEAR)).mean() > 0.99


@pytest.mark.parametrize("sampled", [False, True])
def test_nearness_is_what_a_loop_over_all_rows_says(monkeypatch, sampled):
    row_NF, _ = planted(360, 24, 0.2, seed=4)
    N = len(row_NF)
    if sampled:
        monkeypatch.setattr(neighbours, "LEAST_SAMPLE", 200)
        monkeypatch.setattr(neighbours, "MOST_PRODUCTS", 1)
    monkeypatch.setattr(neighbours, "BLOCK_BYTES", 4 * 24 * 50)
    monkeypatch.setattr(neighbours, "SCORES", 1000)
    found = nearness(InMemory(row_NF), NEAR)
    other_M = np.sort(np.random.default_rng(neighbours.SEED).permutation(N)[:200]) if sampled else np.arange(N)
    wide_NF = row_NF.astype(np.float64) / np.linalg.norm(row_NF.astype(np.float64), axis=1, keepdims=True)
    wanted_N = []
    for i, row_F in enumerate(wide_NF):
        cosine_M = wide_NF[other_M] @ row_F
        order = [m for m in np.argsort(-cosine_M, kind="stable") if other_M[m] != i]
        best = [cosine_M[m] for m in order[: 9 - (i in other_M)] if cosine_M[m] < NEAR]  # a row finds itself
        worst = [cosine_M[m] for m in order[::-1][:9]]
        ends_k = np.full((2, 9), np.nan)
        ends_k[0, : len(best)], ends_k[1, : len(worst)] = best, worst
        wanted_N.append(agreement(ends_k[:1], ends_k[1:], 8)[0])
    np.testing.assert_allclose(found.agreement_N, wanted_N, rtol=0, atol=1e-5)
    label_N = joined(found.pair_E2, N)
    wanted = [list(pair) for pair in reference.near_copies(row_NF, NEAR)]
    assert label_N.tolist() == reference.reachable(wanted, N)
    if not sampled:
        assert (found.sampled, found.known) == (0, 0)
        return
    assert found.sampled == 200
    drawn = set(other_M.tolist())
    known = [pair for pair in wanted if drawn & set(pair) and not np.array_equal(*row_NF[pair])]
    assert found.known == len(known)
    assert 0.9 * found.known <= found.found <= found.known
