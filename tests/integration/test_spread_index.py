"""Shards by tasks: the answers are those of one process, for any number of tasks side by side."""

from __future__ import annotations

import numpy as np
import pytest

from influray.ask.index import PoolIndex, Shard
from influray.ask.index_build import build_index
from influray.ask.spread_index import SpreadIndex
from influray.store.artifact import require_manifest
from influray.store.vectors import PoolVectors, target_vectors
from tests.unit.synthetic_features import random_run

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def test_one_and_three_tasks_at_a_time_build_and_find_the_same(tmp_path):
    run = random_run(tmp_path, rows=500, dimension=16)
    query_QF = target_vectors(run)[1]
    shard_bytes = -(-4 * 32 * len(PoolVectors(run)) // 5)
    found, files = [], []
    for workers in (1, 3):
        spread = SpreadIndex(run, workers, cpus=0.1)
        build_index(
            run,
            "SQ8",
            shard_bytes=shard_bytes,
            builder=spread.build,
            finder=spread.finder,
        )
        parts = require_manifest(run.index, "index")["parts"]
        assert len(parts) == 5
        index = PoolIndex(run, spread.finder([Shard(**part) for part in parts]))
        found.append(index.search(query_QF, 40))
        files.append([(run.index / Shard(**shard).file).read_bytes() for shard in index.manifest["parts"]])
        if workers == 3:
            found.append(PoolIndex(run).search(query_QF, 40))
        (run.index / "manifest.json").unlink()
    assert files[0] == files[1]
    for other in found[1:]:
        assert found[0].helpful_rows.tolist() == other.helpful_rows.tolist()
        assert found[0].harmful_rows.tolist() == other.harmful_rows.tolist()
        np.testing.assert_array_equal(found[0].helpful_scores, other.helpful_scores)
