"""What an index finds is what an exact pass finds, or the share of it that its manifest states."""

from __future__ import annotations

import re
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from influray.ask import index_build, index_kinds
from influray.ask.index import FlatVectors, PoolIndex, build_shard, open_file
from influray.ask.index_build import build_index, held_out_queries, plan_shards, training_positions
from influray.ask.index_gpu import GPU_KINDS, device_for
from influray.ask.query_moments import MomentSums, QueryMoments
from influray.cli.app import app
from influray.config import dump_config, parse_config
from influray.protocols import ArtifactMismatch, ConfigError
from influray.store.artifact import read_json
from influray.store.attribution import Attribution
from influray.store.exact_query import Answers, exact_query
from influray.store.vectors import PoolVectors, target_vectors
from tests.unit.synthetic_features import random_run

EPS32 = float(np.finfo(np.float32).eps)


@settings(max_examples=10, deadline=None, derandomize=True)
@given(
    rows=st.integers(12, 90),
    dimension=st.integers(1, 24),
    checkpoints=st.integers(1, 3),
    similarity=st.sampled_from(["cosine", "dot"]),
    encoding=st.sampled_from(["float16", "int8"]),
    seed=st.integers(0, 99),
)
def test_scores_of_a_flat_index_are_the_columns_of_the_matrix(rows, dimension, checkpoints, similarity, encoding, seed):
    weights = [2 * (k + 1) / (checkpoints * (checkpoints + 1)) for k in range(checkpoints)]
    with tempfile.TemporaryDirectory() as folder:
        run = random_run(
            Path(folder),
            rows=rows,
            dimension=dimension,
            weights=weights,
            similarity=similarity,
            encoding=encoding,
            seed=seed,
        )
        build_index(run, "flat")
        matrix = Attribution(run.attribution)
        answers = PoolIndex(run).search(target_vectors(run)[1], 10**6)
        bound = (dimension * checkpoints + 4) * EPS32 * (9 if similarity == "dot" else 1) * 2
        assert answers.exact
        for j in range(matrix.shape[1]):
            for found, score in (
                (answers.helpful_rows[j], answers.helpful_scores[j]),
                (answers.harmful_rows[j], answers.harmful_scores[j]),
            ):
                assert sorted(found.tolist()) == matrix.rows.tolist()
                np.testing.assert_allclose(score, matrix.gather(found)[:, j], rtol=0, atol=bound)
            assert (np.diff(answers.helpful_scores[j]) <= 0).all()
            assert (np.diff(answers.harmful_scores[j]) >= 0).all()
        scale = 9 if similarity == "dot" else 1
        np.testing.assert_allclose(answers.mean, matrix.stats.mean_T, rtol=0, atol=1e-6 * scale)
        np.testing.assert_allclose(answers.std**2, matrix.stats.std_T**2, rtol=1e-4, atol=1e-7 * scale**2)


@pytest.mark.parametrize("kind", ["ivf", "SQ8", "SQfp16", "HNSW32", "PQ12", "IVF16,PQ12", "PCAR32,IVF8,PQ8,RFlat"])
def test_the_recall_that_is_stated_is_the_recall_that_a_loop_measures(tmp_path, kind):
    run = random_run(tmp_path, rows=1500, dimension=48, targets=12)
    manifest, there = build_index(run, kind)
    assert not there
    assert build_index(run, kind)[1], "nothing to do the second time"
    vectors, index = PoolVectors(run), PoolIndex(run)
    query_QF = held_out_queries(run, vectors, training_positions(len(vectors), vectors.dimension))
    found, pool_NF = index.search(query_QF, 100), vectors.take(np.arange(len(vectors)))
    hits = total = 0
    for q, query_F in enumerate(query_QF):
        score_N = pool_NF.astype(np.float64) @ query_F
        order_N = np.argsort(-score_N, kind="stable")
        hits += len(set(found.helpful_rows[q]) & set(vectors.rows[order_N[:100]]))
        hits += len(set(found.harmful_rows[q]) & set(vectors.rows[order_N[-100:]]))
        total += 200
        by_row = dict(zip(vectors.rows.tolist(), score_N.tolist(), strict=True))
        wanted = [by_row[row] for row in found.helpful_rows[q].tolist()]
        np.testing.assert_allclose(found.helpful_scores[q], wanted, rtol=0, atol=1e-5)
    assert manifest["recall"]["value"] == pytest.approx(hits / total, abs=2e-4), "but for equals at the end"
    assert manifest["recall"] == {"k": 100, "value": manifest["recall"]["value"], "queries": len(query_QF)}
    assert manifest["recall"]["value"] >= 0.95
    assert not found.exact


@pytest.mark.parametrize("kind", ["flat", "ivf", "SQ8", "HNSW32", "IVF4_HNSW8,SQ4"])
def test_building_block_by_block_gives_the_index_of_one_block(tmp_path, kind):
    run = random_run(tmp_path, rows=700, dimension=20)
    vectors = PoolVectors(run)
    sample_SF = vectors.take(training_positions(len(vectors), vectors.dimension))
    index_build.write_file(tmp_path / "trained.faiss", index_kinds.train(kind, sample_SF, len(vectors)))
    (shard,) = plan_shards(len(vectors), vectors.dimension, 10**9, "f" * 64, ".npy" if kind == "flat" else ".faiss")
    found = []
    for size in (4 * vectors.dimension * 13, 10**9, 10**9):
        build_shard(vectors, tmp_path, tmp_path / "trained.faiss", shard, size)
        index = open_file(tmp_path / shard.file)
        found.append((*index.search(target_vectors(run)[1], 50), (tmp_path / shard.file).read_bytes()))
    assert found[1][2] == found[2][2], "the same build gives the same bytes"
    np.testing.assert_allclose(found[0][0], found[1][0], rtol=0, atol=1e-5 if kind == "flat" else 0.02)
    if kind == "flat":
        assert found[0][2] == found[1][2]


def test_what_shards_find_together_is_what_one_finds(tmp_path, monkeypatch):
    run = random_run(tmp_path, rows=900, dimension=16)
    query_QF = target_vectors(run)[1]
    answers = []
    for shards in (1, 4):
        manifest, _ = build_index(run, "flat", shard_bytes=-(-4 * 32 * len(PoolVectors(run)) // shards))
        assert len(manifest["parts"]) == shards
        answers.append(PoolIndex(run).search(query_QF, 30))
        for block_bytes in (64, 10**4):  # blocks that end within a shard and across two
            monkeypatch.setattr(FlatVectors, "block_bytes", block_bytes)
            answers.append(PoolIndex(run).search(query_QF[:1], 30))
        (run.index / "manifest.json").unlink()
    for other in answers[1:]:
        assert other.helpful_rows[0].tolist() == answers[0].helpful_rows[0].tolist()
    answers = [one for one in answers if len(one.mean) > 1]
    assert answers[0].helpful_rows.tolist() == answers[1].helpful_rows.tolist()
    assert answers[0].harmful_rows.tolist() == answers[1].harmful_rows.tolist()
    np.testing.assert_allclose(answers[0].helpful_scores, answers[1].helpful_scores, atol=1e-6)


def test_moments_of_a_wide_pool_are_estimates_within_their_standard_error(tmp_path):
    generator = np.random.default_rng(3)
    pool_NF = generator.standard_normal((30_000, 12)).astype(np.float32) + 5
    query_QF = generator.standard_normal((40, 12)).astype(np.float32)
    score_NQ = pool_NF.astype(np.float64) @ query_QF.T.astype(np.float64)
    sample_SF = pool_NF[generator.permutation(len(pool_NF))[:4096]]

    def moments(exact: bool) -> QueryMoments:
        sums = MomentSums(sample_SF.mean(axis=0), exact)
        for start in range(0, len(pool_NF), 1000):
            sums.add(pool_NF[start : start + 1000])
        return sums.finish(sample_SF)

    mean_Q, std_Q = moments(True).of(query_QF)
    np.testing.assert_allclose(mean_Q, score_NQ.mean(axis=0), rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(std_Q, score_NQ.std(axis=0), rtol=1e-5)
    mean_Q, std_Q = moments(False).of(query_QF)
    np.testing.assert_allclose(mean_Q, score_NQ.mean(axis=0), rtol=1e-6, atol=1e-6)
    # Scores are normal: the standard deviation of 4,096 of them is off by one part in sqrt(2 * 4096), as a rule.
    assert (np.abs(std_Q / score_NQ.std(axis=0) - 1) < 4 / np.sqrt(2 * 4096)).all()


def test_auto_takes_what_fits_and_says_why():
    memory = 6 * 2**30
    wanted = {
        (10_000, 1024): "flat",
        (300_000, 1024): "flat",
        (200_000, 4096): "ivf",
        (10**6, 1024): "ivf",
        (10**7, 4096): "ivf",
        (10**9, 4096): "exact",
    }
    for (rows, dimension), kind in wanted.items():
        choice = index_kinds.choose_kind("auto", rows, dimension, memory)
        assert choice.kind == kind, (rows, dimension)
        assert f"{rows} vectors of {dimension} numbers" in choice.reason
    assert index_kinds.choose_kind("auto", 10**6, 1024, memory).then == ("flat",)
    assert index_kinds.choose_kind("auto", 10**7, 4096, memory).then == ("exact",), "a copy would not fit"


@pytest.mark.parametrize(("memory", "last"), [(2**30, "flat"), (400_000, "exact")])
def test_auto_gives_a_kind_up_that_finds_too_little_and_says_so(tmp_path, monkeypatch, memory, last):
    run = random_run(tmp_path, rows=700, dimension=160, weights=[1.0])
    for name, value in {"SCAN_BYTES": 0, "KEPT": 0.05, "ROUND": 2}.items():
        monkeypatch.setattr(index_kinds, name, value)  # too short a code
    manifest, _ = build_index(run, "auto", memory=memory)
    assert (manifest["kind"], manifest["recall"]) == (last, None)
    assert re.search(r"; ivf found 0\.\d{3} of the 100 best and gave way$", manifest["reason"])
    assert len(list(run.index.glob("shard-*"))) == (last == "flat")
    assert build_index(run, "auto", memory=memory)[1]
    found = PoolIndex(run).search(target_vectors(run)[1], 20)
    assert found.exact
    wanted = exact_query(PoolVectors(run), target_vectors(run)[1], 20)
    np.testing.assert_allclose(found.helpful_scores, wanted.helpful_scores, rtol=0, atol=1e-6)


@pytest.mark.parametrize("kind", ["ivf", "SQ4", "PQ2", "IVF8,PQ4x2"])  # parts of a graph may be out of reach
def test_a_kind_that_is_asked_for_is_searched_until_it_finds_enough(tmp_path, monkeypatch, kind):
    run = random_run(tmp_path, rows=700, dimension=160, weights=[1.0])
    monkeypatch.setattr(index_kinds, "KEPT", 0.05)
    monkeypatch.setattr(index_kinds, "ROUND", 2)  # too short a code
    manifest, _ = build_index(run, kind)
    assert manifest["kind"] == kind
    assert manifest["recall"]["value"] >= 0.95
    assert manifest["setting"]["depth"] <= 7, "700 candidates are all rows"


@pytest.mark.parametrize("kind", ["IVF17,Flat", "IVF1,SQ8", "HNSW8", "PQ4", "Flat"])
def test_the_last_setting_that_is_tried_takes_every_row_for_a_candidate(kind):
    index = index_kinds.faiss_module().index_factory(16, kind)
    lists = index_kinds.list_count(index)
    assert lists == int((re.match(r"IVF(\d+)", kind) or ["", 0])[1])
    for rows, k in ((700, 100), (4000, 100), (90, 90), (10**6, 100)):
        ladder = index_kinds.settings(index, rows, k, far=True)
        assert ladder[-1].depth * k >= rows
        assert ladder[-1].nprobe == lists


def test_faiss_without_its_libraries_is_an_error_that_says_what_to_install(tmp_path, monkeypatch):
    (tmp_path / "faiss.py").write_text("raise RuntimeError('faiss-gpu installed but nvidia-cublas-cu12 is missing')")
    monkeypatch.delitem(sys.modules, "faiss")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ConfigError, match="index: faiss-gpu installed but nvidia-cublas-cu12 is missing"):
        index_kinds.faiss_module()
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(ConfigError, match=r"not installed: pip install .*\[cpu\].*, or gpu in place of cpu"):
        index_kinds.faiss_module()


def test_what_has_no_form_for_gpus_is_searched_on_the_cpu():
    assert set(GPU_KINDS) < set(index_kinds.OURS)
    assert {device_for(kind, 0) for kind in ("SQ8", "HNSW32", "PQ16")} == {"cpu"}


def test_copies_in_the_pool_do_not_lower_the_recall():
    row_Qk = np.array([[4, 9, 1]])
    score_Qk = np.array([[0.5, 0.25, 0.125]], np.float32)
    zero_Q = np.zeros(1)
    truth = Answers(row_Qk, score_Qk, row_Qk, -score_Qk, zero_Q, zero_Q, exact=True)
    for changes, value in (
        ({}, 1.0),
        ({"helpful_rows": np.array([[4, 9, 2]])}, 1.0),
        ({"helpful_rows": np.array([[4, 9, 2]]), "helpful_scores": score_Qk - np.float32(1e-3)}, 5 / 6),
        ({"harmful_rows": np.array([[7, 9, -1]]), "harmful_scores": np.array([[-0.5, -0.25, np.inf]])}, 5 / 6),
    ):
        assert index_build.recall_of(replace(truth, **changes), truth) == pytest.approx(value)


def test_a_stale_torn_or_unknown_index_is_refused_by_name(tmp_path):
    run = random_run(tmp_path)
    with pytest.raises(ArtifactMismatch, match="run `influray index` first"):
        PoolIndex(run)
    for kind, said in {
        "sq8": r"found 'sq8', expected auto, exact, flat, ivf, or .* such as IVF4096,PQ64 or HNSW32 \(could not parse",
        "PQ7": r"found 'PQ7', expected .* \(The dimension of the vector \(d\) should be a multiple",
        "": "found '', expected",
        "IVF4096,PQ8": r"faiss cannot make 'IVF4096,PQ8' of this pool \(Number of training points",
        "IDMap,Flat": r"faiss cannot make 'IDMap,Flat' of this pool \(add does not make sense",
    }.items():
        with pytest.raises(ConfigError, match=f"--kind: {said}"):
            build_index(run, kind)
    manifest, _ = build_index(run, "flat")
    file = run.index / manifest["parts"][0]["file"]
    whole = file.read_bytes()
    file.write_bytes(whole[:-1])
    with pytest.raises(ArtifactMismatch, match="not whole"):
        PoolIndex(run)
    assert not build_index(run, "flat")[1], "it is built again"
    other = random_run(tmp_path / "other", seed=5)
    (run.index).rename(other.index)
    with pytest.raises(ArtifactMismatch, match="built of other features.*run `influray index` again"):
        PoolIndex(other)


@pytest.mark.parametrize(
    ("module", "name", "value"),
    [
        (index_kinds, "KEPT", 0.9),
        (index_kinds, "OURS", ("flat", "ivf")),
        (index_kinds, "LEAST_PROBED", 8),
        (index_kinds, "FORM", 99),
        (index_build, "TRAINING_BYTES", 2**20),
        (index_build, "WANTED", 0.9),
    ],
)
def test_an_index_of_an_older_recipe_is_built_again(tmp_path, monkeypatch, module, name, value):
    run = random_run(tmp_path)
    build_index(run, "flat")
    assert build_index(run, "flat")[1]
    monkeypatch.setattr(module, name, value)
    assert not build_index(run, "flat")[1]


def test_an_exact_pass_and_a_flat_index_agree(tmp_path):
    run = random_run(tmp_path, rows=800, dimension=24)
    build_index(run, "auto")
    vectors = PoolVectors(run)
    query_QF = target_vectors(run)[1]
    one, other = exact_query(vectors, query_QF, 40), PoolIndex(run).search(query_QF, 40)
    for name in ("helpful_scores", "harmful_scores", "mean", "std"):
        np.testing.assert_allclose(getattr(one, name), getattr(other, name), rtol=1e-4, atol=1e-6)


def test_the_command_builds_once_and_says_what_it_chose(tmp_path):
    run = random_run(tmp_path / "run", rows=300)
    config = {
        "model": {"base": "none"},
        "data": {"pool": "pool.jsonl", "targets": {"a": {"files": "a.jsonl"}}},
        "selectors": [{"name": "bids", "method": "bids", "budget": 2}],
    }
    run.write_config(dump_config(parse_config(config)))
    for _ in range(2):
        result = CliRunner().invoke(app, ["index", str(run.path), "--kind", "IVF4,SQ8"])
        assert result.exit_code == 0, result.output
        assert "index: IVF4,SQ8 (asked for), recall@100" in result.output
    assert run.read()["steps"]["index"]["kind"] == "IVF4,SQ8"
    assert read_json(run.index / "manifest.json")["recall"]["value"] >= 0.95
    assert isinstance(CliRunner().invoke(app, ["index", str(tmp_path)]).exception, ConfigError)
