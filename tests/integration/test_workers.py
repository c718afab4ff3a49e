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
from influray.data.files import resolve_files
from influray.features.gradient import GradientFeaturizer
from influray.model.checkpoints import AdamMoments, load_checkpoint, save_checkpoint
from influray.model.loading import attach_adapter, attach_new_adapter, load_base, load_tokenizer
from influray.plugins import permit
from influray.protocols import ConfigError
from influray.runtime.cluster import ResolvedResources
from influray.runtime.tasks import PoolError, ShardTask
from influray.runtime.workers import featurize
from influray.steps.featurize import FeatureStore, recorded_budget
from influray.store.artifact import ShardStore, map_table
from influray.store.datastore import feature_table
from influray.store.run_directory import RunDirectory
from tests.integration.tight_features import FITS
from tests.tiny import chat, pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

CHECKPOINTS = (1, 2)
BUDGET = 256


def resources(workers: int) -> ResolvedResources:
    return ResolvedResources(workers, 0.1, 0.0, 1, 1, max_attempts=2)


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> tuple[Config, RunDirectory]:
    """A run directory with catalogues and two checkpoints whose adapters and moments are random."""
    return make_world(tmp_path_factory.mktemp("world"), pool_rows(12))


def make_world(folder: Path, rows: list[dict]) -> tuple[Config, RunDirectory]:
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool.jsonl", rows)
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
            featurizer = GradientFeaturizer(model, config.features.at(k), moments, direction)
            for task in [task for task in tasks if (task.split, task.checkpoint) == (split, k)]:
                examples = Catalogue(directory.data(split)).tokenized(task.start, task.stop)
                batches = plan_batches([example.tokens for example in examples], BUDGET)
                expected = feature_table([featurizer.compute([examples[i] for i in b]) for b in batches], 32)
                receipt = ShardStore(task.folder).receipt(task.key)
                assert receipt is not None
                assert map_table(Path(task.folder) / receipt.file).equals(expected), f"{task} differs"
                assert receipt.details["tokens"] == sum(example.tokens for example in examples)
                assert (receipt.details["epsilon_share"] is None) == (direction == "sgd")
                assert receipt.details["step"] == "torch"  # the fused one is for GPUs


def test_the_number_of_workers_does_not_show_in_the_bytes(world, featurized, tmp_path):
    config, directory = world
    tasks = feature_tasks(config, directory, tmp_path)
    report = featurize(config.model_dump(mode="json"), directory.path, tasks, resources(2))
    assert len({receipt.details["worker"] for receipt in report.receipts}) == 2
    assert digests(tasks) == digests(featurized[0])
    assert {path.name.partition("-")[0] for path in directory.logs.iterdir()} == {"worker"}


def test_packed_shards_hold_the_rows_of_padded_ones_say_so_and_repeat_at_any_number_of_workers(tmp_path):
    rows = [chat(f"row-{i}", "s", "Say a" + "b" * (i * i % 53), "a" + "b" * (i * i % 53)) for i in range(24)]
    config, directory = make_world(tmp_path, rows)
    plain = config.model_dump(mode="json")
    plain["features"] |= {"token_budget": 4096, "rows_per_shard": 12}
    adapter = load_checkpoint(directory.checkpoint(1)).adapter
    featurizer = GradientFeaturizer(attach_adapter(load_base(config.model), adapter), config.features, None, "sgd")
    tables = {}
    for packing, workers in (("on", 1), ("auto", 2)):
        plain["features"] |= {"packing": packing, "direction": "sgd"}
        shards = feature_tasks(parse_config(plain), directory, tmp_path / packing)
        tasks = [t for t in shards if (t.split, t.checkpoint) == ("pool", 1)]
        report = featurize(plain, directory.path, tasks, resources(workers))
        tables[packing] = [map_table(Path(t.folder) / r.file) for t, r in zip(tasks, report.receipts, strict=True)]
        for task, receipt in zip(tasks, report.receipts, strict=True):
            lengths = [e.tokens for e in Catalogue(directory.data("pool")).tokenized(task.start, task.stop)]
            assert receipt.details["packed"]
            assert sum(lengths) <= receipt.details["batch_tokens"] < 0.8 * len(lengths) * max(lengths)
    for on, auto, task in zip(*tables.values(), tasks, strict=True):
        assert auto.equals(on), "one shard, two workers, other bytes"
        padded = featurizer.compute(Catalogue(directory.data("pool")).tokenized(task.start, task.stop))
        order = np.argsort(on["row"].to_numpy())
        assert np.array_equal(on["row"].to_numpy()[order], padded.row_B)
        for name in ("norm", "grad_norm", "loss"):
            np.testing.assert_allclose(on[name].to_numpy()[order], getattr(padded, f"{name}_B"), rtol=1e-4)
        feature = np.stack(on["feature"].to_numpy())[order].astype(np.float64)
        np.testing.assert_allclose((feature * padded.feature_BD).sum(1), 1, atol=2e-3)


def test_a_resumed_run_keeps_the_budget_of_the_shards_that_are_there(world, tmp_path):
    config, directory = world
    plain = config.model_dump(mode="json")
    plain["features"]["token_budget"] = "auto"
    target = [t for t in feature_tasks(config, directory, tmp_path / "features") if t.split == "target"]
    featurize(plain, directory.path, target[:1], resources(1), token_budget=96)
    shards = tuple((task.key, task.start, task.stop) for task in target if task.checkpoint == 1)
    store = FeatureStore(RunDirectory(tmp_path), "target", 1, shards, Catalogue(directory.data("target")), {})
    recorded = recorded_budget([store])
    assert recorded == 96, "what auto would give is 4096"
    report = featurize(plain, directory.path, target[1:], resources(1), token_budget=recorded)
    assert {receipt.details["token_budget"] for receipt in report.receipts} == {96}


def test_a_batch_that_does_not_fit_has_its_shard_made_again_with_smaller_ones(world, tmp_path):
    config, directory = world
    plain = config.model_dump(mode="json")
    plain["features"]["featurizer"] = "tests.integration.tight_features:TightFeaturizer"
    permit([plain["features"]["featurizer"]])
    tasks = [t for t in feature_tasks(config, directory, tmp_path) if (t.split, t.checkpoint) == ("pool", 1)]
    report = featurize(plain, directory.path, tasks, resources(1))
    assert report.workers_lost == 0
    shrunk = [receipt.details for receipt in report.receipts if receipt.details["shrunk"]]
    assert shrunk, "every batch fits: the test says nothing"
    assert all(details["token_budget"] <= FITS and not details["failures"] for details in shrunk)
    assert sum(receipt.rows for receipt in report.receipts) == 12


def test_a_row_that_fits_nowhere_uses_up_its_attempts_and_says_what_happened(world, tmp_path):
    config, directory = world
    plain = config.model_dump(mode="json")
    plain["features"]["featurizer"] = "tests.integration.tight_features:HopelessFeaturizer"
    permit([plain["features"]["featurizer"]])
    tasks = [t for t in feature_tasks(config, directory, tmp_path) if (t.split, t.checkpoint) == ("pool", 1)]
    with pytest.raises(PoolError, match=r"CUDA out of memory.*\(token budget \d+\)") as caught:
        featurize(plain, directory.path, tasks[:1], resources(1))
    assert len(caught.value.report.failures[0].reasons) == 2


def test_what_is_wrong_with_the_model_arrives_as_an_error_of_the_user(world, tmp_path):
    config, directory = world
    broken = config.model_dump(mode="json")
    broken["model"]["base"] = str(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match=r"^model.base: there is no folder") as caught:
        featurize(broken, directory.path, feature_tasks(config, directory, tmp_path), resources(1))
    assert type(caught.value) is ConfigError
