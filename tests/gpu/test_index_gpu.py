"""An index on a GPU against the exact answers of the CPU. Needs faiss built for GPUs, and skips itself elsewhere."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from influray.ask import index_gpu
from influray.ask.index import IndexShards, PoolIndex, Shard
from influray.ask.index_build import build_index
from influray.ask.index_gpu import GPU_KINDS, GPU_MOST, device_for
from influray.ask.index_kinds import Setting, faiss_module
from influray.store.exact_query import exact_query
from influray.store.vectors import PoolVectors, target_vectors
from tests.unit.synthetic_features import random_run


def _has_gpu() -> bool:
    return torch.cuda.is_available() and hasattr(faiss_module(), "StandardGpuResources")


pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not _has_gpu(), reason="no GPU, or faiss is not built for one")]


@pytest.mark.parametrize("kind", ["flat", "ivf", "SQfp16", "HNSW32", "IVF64,PQ16"])
def test_every_kind_is_built_and_asked_on_a_machine_with_a_gpu(tmp_path, kind):
    run = random_run(tmp_path, rows=6000, dimension=96, targets=12)
    assert (device_for(kind, 2**20) == "gpu") == (kind in GPU_KINDS)
    manifest, _ = build_index(run, kind, shard_bytes=4 * 192 * 2500)
    assert len(manifest["parts"]) == 3
    query_QF = target_vectors(run)[1]
    found, truth = PoolIndex(run).search(query_QF, 50), exact_query(PoolVectors(run), query_QF, 50)
    if kind == "flat":
        assert found.exact
        np.testing.assert_allclose(found.helpful_scores, truth.helpful_scores, rtol=0, atol=1e-6)
        np.testing.assert_allclose(found.harmful_scores, truth.harmful_scores, rtol=0, atol=1e-6)
    else:
        assert manifest["recall"]["value"] >= 0.95
    shared = [np.isin(a, b).mean() for a, b in zip(found.helpful_rows, truth.helpful_rows, strict=True)]
    assert np.mean(shared) >= 0.9
    np.testing.assert_allclose(found.std, truth.std, rtol=1e-3)


@pytest.mark.parametrize("kind", GPU_KINDS)
def test_scores_on_a_gpu_are_those_of_the_cpu_and_more_candidates_than_it_takes_are_found_too(tmp_path, kind):
    run = random_run(tmp_path, rows=3 * GPU_MOST, dimension=32)
    manifest, _ = build_index(run, kind)
    vectors, query_QF = PoolVectors(run), target_vectors(run)[1]
    shards = [Shard(**shard) for shard in manifest["parts"]]
    lists = manifest["setting"].get("nprobe", 0)
    for count in (10, GPU_MOST // 2, GPU_MOST):
        setting = Setting(2, nprobe=lists)
        there, here = (
            IndexShards(vectors, run.index, shards, device).candidates(query_QF, count, setting)
            for device in ("gpu", "cpu")
        )
        np.testing.assert_allclose(there[1], here[1], rtol=0, atol=1e-3 if kind != "flat" else 1e-6)
        shared = [np.isin(a, b).mean() for a, b in zip(there[0], here[0], strict=True)]
        assert np.mean(shared) >= 0.98


def test_an_index_without_room_on_the_gpu_is_searched_on_the_cpu_and_says_so(caplog):
    total = torch.cuda.mem_get_info()[1]
    assert device_for("flat", total) == "cpu"
    assert "is searched on the CPU" in caplog.text


def test_what_a_gpu_holds_can_be_brought_back(tmp_path):
    faiss = faiss_module()
    row_NF = np.random.default_rng(0).standard_normal((500, 16)).astype(np.float32)
    index = faiss.IndexFlatIP(16)
    index.add(row_NF)
    back = faiss.index_gpu_to_cpu(index_gpu.to_gpu(index))
    assert back.reconstruct_n(0, 500).tobytes() == row_NF.tobytes()
