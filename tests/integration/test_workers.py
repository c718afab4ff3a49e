"""The real workers on a tiny Llama: what they commit is what the layers below compute, at any number of workers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from influray.config import Config, parse_config
from influray.data.batches import plan_batches, plan_shards
from influray.data.catalogue import Catalogue, build_catalogue
from influray.data.chat import ChatEncoder
from influray.data.readers import resolve_files
from influray.features.gradient import GradientFeaturizer
from influray.model.checkpoints import AdamMoments, load_checkpoint, save_checkpoint
from influray.model.loading import attach_adapter, attach_new_adapter, load_base, load_tokenizer
from influray.protocols import ConfigError, FeatureBlock
from influray.runtime.cluster import ResolvedResources
from influray.runtime.shards import ShardTask
from influray.runtime.workers import featurize, score
from influray.store.artifact import ShardStore, map_table
from influray.store.datastore import feature_table
from influray.store.run_directory import RunDirectory
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CHECKPOINTS = (1, 2)
BUDGET = 256


def resources(workers: int) -> ResolvedResources:
    return ResolvedResources(workers, 0.1, 0.0, 1, 1, max_attempts=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Config, RunDirectory]:
    """A run directory with catalogues and two checkpoints whose adapters and moments are random."""
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool.jsonl", pool_rows(12))
    write_jsonl(folder / "sums.jsonl", target_rows("sums"))
    config = parse_config(
        {
            "model": {"base": str(folder / "model"), "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "down_proj"]}},
            "data": {"root": str(folder), "pool": "pool.jsonl", "targets": {"sums": "sums.jsonl"}, "max_tokens": 128},
            "features": {"projector": {"dimension": 32}, "rows_per_shard": 4, "token_budget": BUDGET},
            "selectors": [{"name": "bids", "method": "bids", "budget": 2}],
        }
    )
    directory = RunDirectory(folder / "run")
    encoder = ChatEncoder(load_tokenizer(config.model), "auto", config.data.max_tokens, True)
    for split, task, names in (("pool", "", config.data.pool), ("target", "sums", config.data.targets["sums"].files)):
        files = [(task, file) for file in resolve_files(names, config.data.root, "data")]
        place = directory.data(split)
        build_catalogue(place, split, files, encoder, "k", config.data, quarantine=directory.quarantine_path)
    for k in CHECKPOINTS:
        write_checkpoint(config, directory.checkpoint(k), seed=k)
    return config, directory


def write_checkpoint(config: Config, folder: Path, seed: int) -> None:
    model = attach_new_adapter(load_base(config.model), config.model.lora, seed)
    torch.manual_seed(seed)
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    with torch.no_grad():
        for parameter in trained.values():
            parameter.normal_(std=0.1)
    moments = AdamMoments(
        exp_avg={name: torch.randn_like(p) * 1e-3 for name, p in trained.items()},
        exp_avg_sq={name: torch.rand_like(p) * 1e-4 for name, p in trained.items()},
        beta1=0.9,
        beta2=0.999,
        epsilon=1e-8,
        step=10,
    )
    save_checkpoint(folder, model, moments, epoch=seed, mean_learning_rate=1e-3, rows=12, losses=[1.0])


def feature_tasks(config: Config, directory: RunDirectory, out: Path) -> list[ShardTask]:
    tasks = []
    for split in ("pool", "target"):
        shards = plan_shards(Catalogue(directory.data(split)).file_lengths, config.features.rows_per_shard)
        for k in CHECKPOINTS:
            folder = str(out / split / f"checkpoint-{k}")
            tasks += [ShardTask(f"{split}-{k}-{s.start}", split, k, s.start, s.stop, folder) for s in shards]
    return tasks


def digests(tasks: list[ShardTask]) -> dict[str, str]:
    found = {task.key: ShardStore(task.folder).valid_receipt(task.key) for task in tasks}
    return {key: receipt.sha256 for key, receipt in found.items() if receipt is not None}


@pytest.fixture(scope="module")
def featurized(world, tmp_path_factory):
    """All feature shards, by one worker."""
    config, directory = world
    tasks = feature_tasks(config, directory, tmp_path_factory.mktemp("one"))
    heard = []
    report = featurize(
        config.model_dump(mode="json"),
        directory.path,
        tasks,
        resources(1),
        on_receipt=lambda task, receipt: heard.append(task.key),
    )
    assert sorted(heard) == sorted(task.key for task in tasks)
    assert report.token_budget == BUDGET
    return tasks, report


def test_a_shard_holds_what_the_featurizer_computes_at_its_checkpoint(world, featurized):
    config, directory = world
    tasks, _ = featurized
    for k in CHECKPOINTS:
        checkpoint = load_checkpoint(directory.checkpoint(k))
        for split, direction in (("pool", "adam"), ("target", "sgd")):
            model = attach_adapter(load_base(config.model), checkpoint.adapter)
            moments = checkpoint.moments() if direction == "adam" else None
            featurizer = GradientFeaturizer(model, config.features, moments, direction)
            for task in [task for task in tasks if (task.split, task.checkpoint) == (split, k)]:
                examples = Catalogue(directory.data(split)).tokenized(task.start, task.stop)
                batches = plan_batches([example.tokens for example in examples], BUDGET)
                expected = feature_table([featurizer.compute([examples[i] for i in b]) for b in batches], 32)
                receipt = ShardStore(task.folder).receipt(task.key)
                assert receipt is not None
                assert map_table(Path(task.folder) / receipt.file).equals(expected), f"{task} differs"
                assert receipt.details["tokens"] == sum(example.tokens for example in examples)
                assert (receipt.details["epsilon_share"] is None) == (direction == "sgd")


def test_the_number_of_workers_does_not_show_in_the_bytes(world, featurized, tmp_path):
    config, directory = world
    tasks = feature_tasks(config, directory, tmp_path)
    report = featurize(config.model_dump(mode="json"), directory.path, tasks, resources(2))
    assert len({receipt.details["worker"] for receipt in report.receipts}) == 2
    assert digests(tasks) == digests(featurized[0])
    assert {path.name.partition("-")[0] for path in directory.logs.iterdir()} == {"worker"}


def test_what_is_wrong_with_the_model_arrives_as_an_error_of_the_user(world, tmp_path):
    config, directory = world
    broken = config.model_dump(mode="json")
    broken["model"]["base"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"^model.base: there is no folder") as caught:
        featurize(broken, directory.path, feature_tasks(config, directory, tmp_path), resources(1))
    assert type(caught.value) is ConfigError


def write_datastore(folder: Path, rows: list[int], cuts: list[int], seed: int) -> dict[int, np.ndarray]:
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
        store.commit(keys[-1], feature_table([block], 16) if here else None, {})
    store.freeze(keys, {"dimension": 16})
    return {row: feature_ND[i].astype(np.float64) for i, row in enumerate(rows)}


@pytest.mark.parametrize("workers", [1, 2])
def test_a_line_of_the_matrix_is_the_weighted_sum_over_checkpoints_of_rows_that_all_have(world, tmp_path, workers):
    config, _ = world
    directory = RunDirectory(tmp_path)
    weights = (0.75, 0.25)
    pool_rows_K = [[*range(0, 9), *range(12, 30)], [row for row in range(30) if row not in (3, 14, 29)]]
    target_rows_K = [[0, 1, 2, 4], [0, 2, 3, 4]]
    cuts_K = [[0, 9, 12, 20], [0, 7, 25]]
    pool = [write_datastore(directory.features("pool", k), pool_rows_K[k - 1], cuts_K[k - 1], k) for k in (1, 2)]
    target = [write_datastore(directory.features("target", k), target_rows_K[k - 1], [0], 10 + k) for k in (1, 2)]
    bounds = [(0, 9), (9, 12), (12, 16), (16, 30)]  # the second has no row
    tasks = [ShardTask(f"a-{i}", "attribution", 0, *b, str(directory.attribution)) for i, b in enumerate(bounds)]
    report = score(config.model_dump(mode="json"), directory.path, tasks, resources(workers), weights=weights)
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
