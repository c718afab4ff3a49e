"""The workers that read datastores: lines of the matrix and sums over the pool, whatever parts hold the rows."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from influray.config import Config, parse_config
from influray.data.catalogue import build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.files import resolve_files
from influray.protocols import FeatureBlock, Stores
from influray.runtime.cluster import ResolvedResources
from influray.runtime.scoring import score
from influray.runtime.tasks import ShardTask
from influray.store.artifact import ShardStore, map_table
from influray.store.datastore import Datastore, feature_table
from influray.store.run_directory import RunDirectory
from tests.tiny import byte_tokenizer, pool_rows, target_rows, write_jsonl

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]


def resources(workers: int) -> ResolvedResources:
    return ResolvedResources(workers, 0.1, 0.0, 1, 1, max_attempts=2)


def write_catalogues(folder: Path) -> tuple[Config, RunDirectory]:
    """A run directory with 30 pool rows and 5 targets, and no features yet."""
    write_jsonl(folder / "pool.jsonl", pool_rows(30))
    write_jsonl(folder / "sums.jsonl", target_rows("sums", 5))
    config = parse_config(
        {
            "model": {"base": "none"},
            "data": {"root": str(folder), "pool": "pool.jsonl", "targets": {"sums": "sums.jsonl"}, "max_tokens": 128},
            "selectors": [{"name": "bids", "method": "bids", "budget": 2}],
        }
    )
    directory = RunDirectory(folder / "run")
    encoder = ChatEncoder(byte_tokenizer(), "auto", config.data.max_tokens)
    for split, task, names in (("pool", "", config.data.pool), ("target", "sums", config.data.targets["sums"].files)):
        files = [(task, file) for file in resolve_files(names, config.data.root, "data")]
        place = directory.data(split)
        build_catalogue(place, split, files, encoder, "k", config.data, quarantine=directory.quarantine_path)
    return config, directory


def write_datastore(
    folder: Path, rows: list[int], cuts: list[int], seed: int, encoding: str = "float16"
) -> dict[int, np.ndarray]:
    """A committed datastore of random unit rows whose parts begin at `cuts`; returns row -> feature."""
    generator = np.random.default_rng(seed)
    feature_ND = generator.standard_normal((len(rows), 16))
    feature_ND = (feature_ND / np.linalg.norm(feature_ND, axis=1, keepdims=True)).astype(np.float16)
    store = ShardStore(folder)
    keys = []
    for start, stop in zip(cuts, [*cuts[1:], 10**6], strict=True):
        here = [i for i, row in enumerate(rows) if start <= row < stop]
        plain = np.ones(len(here), np.float32)
        block = FeatureBlock(
            np.array([rows[i] for i in here]), feature_ND[here], plain, plain, plain, plain.astype(np.int32)
        )
        keys.append(f"part-{start}")
        store.commit(keys[-1], feature_table([block], 16, encoding) if here else None, {})
    store.freeze(keys, {"dimension": 16})
    return dict(zip(rows, Datastore(folder).features().astype(np.float64), strict=True))


@pytest.mark.parametrize(("workers", "encoding"), [(1, "float16"), (2, "float16"), (2, "int8"), (1, "sign1")])
def test_a_line_of_the_matrix_is_the_weighted_sum_over_checkpoints_of_rows_that_all_have(tmp_path, workers, encoding):
    config, directory = write_catalogues(tmp_path)
    weights = (0.75, 0.25)
    pool_rows_K = [[*range(0, 9), *range(12, 30)], [row for row in range(30) if row not in (3, 14, 29)]]
    target_rows_K = [[0, 1, 2, 4], [0, 2, 3, 4]]
    cuts_K = [[0, 9, 12, 20], [0, 7, 25]]
    pool = [
        write_datastore(directory.features("pool", k), pool_rows_K[k - 1], cuts_K[k - 1], k, encoding) for k in (1, 2)
    ]
    target = [write_datastore(directory.features("target", k), target_rows_K[k - 1], [0], 10 + k) for k in (1, 2)]
    bounds = [(0, 9), (9, 12), (12, 16), (16, 30)]  # the second has no row
    tasks = [ShardTask(f"a-{i}", "attribution", 0, *b, str(directory.attribution)) for i, b in enumerate(bounds)]
    report = score(config.model_dump(mode="json"), directory.path, tasks, resources(workers), stores=Stores(weights))
    found = {}
    assert [bool(receipt.file) for receipt in report.receipts] == [True, False, True, True]
    for receipt in [receipt for receipt in report.receipts if receipt.file]:
        table = map_table(directory.attribution / receipt.file)
        found |= dict(zip(table["row"].to_pylist(), table["score"].to_pylist(), strict=True))
    common = sorted(set(pool[0]) & set(pool[1]))
    assert list(found) == common
    for row in common:
        line = [sum(w * pool[k][row] @ target[k][j] for k, w in enumerate(weights)) for j in (0, 2, 4)]
        np.testing.assert_allclose(found[row], line, rtol=0, atol=1e-6)
