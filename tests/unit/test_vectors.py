"""One inner product of two vectors is the influence, and the answers of a pass are what a loop finds."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from influray.protocols import ArtifactMismatch, DataError
from influray.store import exact_query as module
from influray.store.artifact import read_sealed, write_sealed
from influray.store.attribution import Attribution
from influray.store.exact_query import BestRows, exact_query, group_moments
from influray.store.moments import merge_in_order
from influray.store.vectors import PoolVectors, join_checkpoints, target_vectors
from tests.reference import answers as reference
from tests.unit.synthetic_features import random_run, read_rows, write_matrix, write_store

EPS32 = float(np.finfo(np.float32).eps)


def whole(matrix: Attribution) -> np.ndarray:
    return np.concatenate([block_BT for _, block_BT in matrix.blocks()])


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    rows=st.integers(12, 80),
    dimension=st.integers(1, 33),
    checkpoints=st.integers(1, 3),
    encoding=st.sampled_from(["float16", "int8", "sign1"]),
    similarity=st.sampled_from(["cosine", "dot"]),
    parts=st.integers(1, 4),
    size=st.integers(1, 90),
    seed=st.integers(0, 99),
)
def test_products_of_vectors_are_the_lines_of_the_matrix(
    rows, dimension, checkpoints, encoding, similarity, parts, size, seed
):
    weights = [2 * (k + 1) / (checkpoints * (checkpoints + 1)) for k in range(checkpoints)]
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(
            Path(folder),
            rows=rows,
            dimension=dimension,
            weights=weights,
            encoding=encoding,
            similarity=similarity,
            parts=parts,
            seed=seed,
        )
        matrix, vectors = Attribution(run.attribution), PoolVectors(run)
        row_T, target_TF = target_vectors(run)
        A_NT = whole(matrix)
        pool, target = read_rows(run, "pool", checkpoints), read_rows(run, "target", checkpoints)
        assert vectors.rows.tolist() == matrix.rows.tolist()
        assert row_T.tolist() == matrix.target_rows.tolist()
        blocks = list(vectors.blocks(size))
        assert [start for start, _ in blocks] == list(range(0, len(vectors.rows), size))
        all_NF = np.concatenate([block_BF for _, block_BF in blocks])
        # |sum of F rounded products| <= F eps |x||y|, and a norm is at most 3 on both sides.
        bound = (dimension * checkpoints + 4) * EPS32 * (9 if similarity == "dot" else 1) * 2
        np.testing.assert_allclose(all_NF @ target_TF.T, A_NT, rtol=0, atol=bound)
        asked = vectors.query(target.feature_KBD, [facts["norm"] for facts in target.facts_KB])
        np.testing.assert_allclose(asked, target_TF, rtol=2 * EPS32)
        norms = [[facts["norm"].astype(np.float64) for facts in one.facts_KB] for one in (pool, target)]
        scale = [[norm if similarity == "dot" else np.ones_like(norm) for norm in one] for one in norms]
        plain = [
            [feature.astype(np.float64) * norm[:, None] for feature, norm in zip(one.feature_KBD, factor, strict=True)]
            for one, factor in zip((pool, target), scale, strict=True)
        ]
        np.testing.assert_allclose(A_NT, reference.influence(*plain, weights), rtol=0, atol=bound)
        positions = np.random.default_rng(seed).integers(0, len(vectors.rows), 12)
        assert vectors.take(positions).tobytes() == all_NF[positions].tobytes()
        assert vectors.take(positions[:0]).shape == (0, vectors.dimension)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 300),
    queries=st.integers(1, 5),
    k=st.integers(1, 40),
    levels=st.integers(1, 60),
    size=st.integers(1, 130),
    seed=st.integers(0, 99),
)
def test_the_best_of_blocks_are_the_best_of_all_and_equals_go_to_the_lower_row(rows, queries, k, levels, size, seed):
    score_NQ = np.random.default_rng(seed).integers(-levels, levels + 1, (rows, queries)).astype(np.float32)
    k = min(k, rows)
    for sign in (1, -1):
        best = BestRows(queries, k, lowest=sign < 0)
        for start in range(0, rows, size):
            best.add(start, score_NQ[start : start + size])
        position_Qk, score_Qk = best.sorted()
        for j in range(queries):
            wanted = reference.top(score_NQ[:, j], np.arange(rows), k, sign)
            assert (position_Qk[j].tolist(), score_Qk[j].tolist()) == wanted


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    k=st.integers(1, 12),
    levels=st.integers(1, 8),
    size=st.integers(1, 40),
    lowest=st.booleans(),
    seed=st.integers(0, 99),
)
def test_who_learns_what_another_keeps_of_later_rows_still_finds_the_earlier_of_equals(k, levels, size, lowest, seed):
    score_NQ = np.random.default_rng(seed).integers(-levels, levels + 1, (120, 2)).astype(np.float32)
    own, other = BestRows(2, k, lowest), BestRows(2, k, lowest)
    for start in range(60, 120, size):
        other.add(start, score_NQ[start : min(start + size, 120)])
    for start in range(0, 60, size):
        own.add(start, score_NQ[start : min(start + size, 60)])
        own.learn(other)
    own.merge(*other.sorted())
    position_Qk, score_Qk = own.sorted()
    for j in range(2):
        wanted = reference.top(score_NQ[:, j], np.arange(120), k, -1 if lowest else 1)
        assert (position_Qk[j].tolist(), score_Qk[j].tolist()) == wanted


def test_candidates_may_come_in_any_order():
    generator = np.random.default_rng(0)
    score_QN = generator.integers(-5, 6, (3, 40)).astype(np.float32)
    wanted = [reference.top(score_N, np.arange(40), 7) for score_N in score_QN]
    for seed in range(5):
        position_QN = np.tile(np.random.default_rng(seed).permutation(40), (3, 1))
        best = BestRows(3, 7)
        for start in range(0, 40, 9):
            part_QE = position_QN[:, start : start + 9]
            best.merge(part_QE, np.take_along_axis(score_QN, part_QE, 1))
        best.merge(np.full((3, 2), -1), np.full((3, 2), -np.inf, np.float32))
        position_Qk, score_Qk = best.sorted()
        assert [(a.tolist(), b.tolist()) for a, b in zip(position_Qk, score_Qk, strict=True)] == wanted


@settings(max_examples=20, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 3000),
    queries=st.integers(1, 4),
    offset=st.sampled_from([0.0, 3.0, -1000.0]),
    size=st.integers(100, 3000),
    seed=st.integers(0, 99),
)
def test_moments_of_groups_are_those_of_float64_sums(rows, queries, offset, size, seed):
    score_NQ = (np.random.default_rng(seed).standard_normal((rows, queries)) + offset).astype(np.float32)
    parts = [torch.from_numpy(score_NQ[start : start + size]) for start in range(0, rows, size)]
    found = merge_in_order([group_moments(part, torch.empty_like(part)) for part in parts])
    wide_NQ = score_NQ.astype(np.float64)
    np.testing.assert_allclose(found.mean, wide_NQ.mean(axis=0), rtol=0, atol=2e-6)
    np.testing.assert_allclose(found.std, wide_NQ.std(axis=0), rtol=1e-6, atol=1e-9)


class InPlace:
    """Rows that are asked where they lie."""

    def __init__(self, row_NF: np.ndarray, block_bytes: int) -> None:
        self.rows, self.dimension, self.block_bytes = np.arange(len(row_NF)), row_NF.shape[1], block_bytes
        self._row_NF = row_NF

    def block(self, start: int, space_BF: np.ndarray) -> np.ndarray:
        return self._row_NF[start : start + len(space_BF)]


def test_one_query_has_the_same_bits_for_any_block_and_number_of_threads():
    row_NF = np.random.default_rng(0).standard_normal((5000, 37)).astype(np.float32)
    threads, found = torch.get_num_threads(), []
    try:
        for block_bytes, count in ((1, 1), (1, 3), (10**5, 2), (10**9, 1), (10**9, 4)):
            torch.set_num_threads(count)
            found.append(exact_query(InPlace(row_NF, block_bytes), row_NF[:1], 50))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert other.helpful_scores.tobytes() == found[0].helpful_scores.tobytes()
        assert other.harmful_rows.tolist() == found[0].harmful_rows.tolist()
    np.testing.assert_allclose(found[0].helpful_scores[0, 0], row_NF[0] @ row_NF[0], rtol=1e-6)


@settings(max_examples=40, deadline=None, derandomize=True)
@given(
    rows=st.integers(1, 900),
    queries=st.integers(1, 6),
    k=st.integers(1, 30),
    levels=st.integers(1, 30),
    threads=st.integers(1, 5),
    group=st.integers(1, 2000),
    block=st.integers(1, 6000),
    seed=st.integers(0, 99),
)
def test_a_batch_has_the_answers_of_a_sorted_list_for_any_blocks_and_threads(
    rows, queries, k, levels, threads, group, block, seed
):
    generator = np.random.default_rng(seed)
    # Whole numbers, whose products are exact and often equal.
    row_NF, query_QF = (generator.integers(-levels, levels + 1, (n, 3)).astype(np.float32) for n in (rows, queries))
    before = torch.get_num_threads(), module.GROUP_SCORES, module.BLOCK_SCORES
    torch.set_num_threads(threads)
    module.GROUP_SCORES, module.BLOCK_SCORES = group, block
    try:
        found = exact_query(InPlace(row_NF, 12 * 300), query_QF, k)
    finally:
        torch.set_num_threads(before[0])
        module.GROUP_SCORES, module.BLOCK_SCORES = before[1:]
    score_NQ = row_NF @ query_QF.T
    for j in range(queries):
        for sign, row_k, score_k in (
            (1, found.helpful_rows[j], found.helpful_scores[j]),
            (-1, found.harmful_rows[j], found.harmful_scores[j]),
        ):
            wanted = reference.top(score_NQ[:, j], np.arange(rows), min(k, rows), sign)
            assert (row_k.tolist(), score_k.tolist()) == wanted
    np.testing.assert_allclose(found.mean, score_NQ.astype(np.float64).mean(axis=0), rtol=1e-6, atol=1e-5)
    np.testing.assert_allclose(found.std, score_NQ.astype(np.float64).std(axis=0), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("similarity", ["cosine", "dot"])
def test_a_pass_answers_a_target_with_its_column_of_the_matrix(tmp_path, similarity):
    run = random_run(tmp_path, rows=700, similarity=similarity)
    matrix = Attribution(run.attribution)
    A_NT = whole(matrix)
    vectors = PoolVectors(run)
    answers = exact_query(vectors, target_vectors(run)[1], 20)
    assert answers.exact
    assert answers.helpful_rows.dtype == answers.harmful_rows.dtype == np.int64
    assert answers.helpful_scores.dtype == answers.harmful_scores.dtype == np.float32
    for j in range(A_NT.shape[1]):
        for sign, rows, scores in (
            (1, answers.helpful_rows[j], answers.helpful_scores[j]),
            (-1, answers.harmful_rows[j], answers.harmful_scores[j]),
        ):
            wanted_rows, wanted_scores = reference.top(A_NT[:, j], matrix.rows, 20, sign)
            np.testing.assert_allclose(scores, wanted_scores, rtol=0, atol=64 * EPS32 * 9)
            assert len(set(rows.tolist()) & set(wanted_rows)) >= 19, "but for what rounding exchanges at the end"
            assert (np.diff(scores) * sign <= 0).all()
    np.testing.assert_allclose(answers.mean, matrix.stats.mean_T, rtol=0, atol=1e-6)
    np.testing.assert_allclose(answers.std, matrix.stats.std_T, rtol=1e-6)


def test_fewer_rows_than_answers_give_all_rows(tmp_path):
    run = random_run(tmp_path, rows=12)
    vectors = PoolVectors(run)
    answers = exact_query(vectors, vectors.take(np.array([0])), 100)
    assert sorted(answers.helpful_rows[0].tolist()) == vectors.rows.tolist()
    assert answers.helpful_rows[0].tolist() == answers.harmful_rows[0].tolist()[::-1]


def test_the_digest_changes_with_every_vector(tmp_path):
    found = set()
    for name, changes in {
        "a": {},
        "b": {"seed": 1},
        "c": {"weights": (0.5, 0.5)},
        "d": {"similarity": "dot"},
        "e": {"encoding": "int8"},
    }.items():
        found.add(PoolVectors(random_run(tmp_path / name, **changes)).digest)
    assert len(found) == 5
    assert PoolVectors(random_run(tmp_path / "again")).digest in found


def test_what_cannot_be_asked_is_refused_by_name(tmp_path):
    run = random_run(tmp_path)
    vectors = PoolVectors(run)
    with pytest.raises(DataError, match=r"shape \(1, 3\), but the pool's vectors have 32"):
        exact_query(vectors, np.zeros((1, 3), np.float32), 5)
    with pytest.raises(DataError, match="not finite"):
        exact_query(vectors, np.full((1, 32), np.nan, np.float32), 5)
    with pytest.raises(DataError, match="not finite"):
        join_checkpoints([np.array([[np.inf]])], [1.0])
    lost = int(np.setdiff1d(np.arange(60), vectors.rows)[0])
    with pytest.raises(DataError, match=f"row {lost}: has no feature at every checkpoint"):
        vectors.positions_of(np.array([lost]))
    assert vectors.positions_of(vectors.rows[[7, 3]]).tolist() == [7, 3]


def test_a_matrix_of_another_scorer_or_of_other_features_is_refused(tmp_path):
    run = random_run(tmp_path)
    path = run.attribution / "manifest.json"
    manifest = read_sealed(path)
    write_sealed(path, {**manifest, "scorer": "datainf"})
    with pytest.raises(ArtifactMismatch, match="scorer datainf.*inner_product can"):
        PoolVectors(run)
    write_sealed(path, {name: fact for name, fact in manifest.items() if name != "scorer"})
    with pytest.raises(ArtifactMismatch, match="run `influray score` again"):
        PoolVectors(run)
    write_sealed(path, manifest)
    PoolVectors(run)
    features = run.features("pool", 2)
    write_store(features, np.arange(60), np.ones((60, 16), np.float16) / 4, seed=77)
    with pytest.raises(ArtifactMismatch, match="made of other features"):
        PoolVectors(run)
    for file in run.attribution.iterdir():
        if file.is_file():
            file.unlink()
    for receipt in (run.attribution / "_receipts").iterdir():
        receipt.unlink()
    write_matrix(run, (0.75, 0.25), ["ab"[row % 2] for row in range(5)], "cosine")
    PoolVectors(run)
