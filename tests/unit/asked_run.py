"""A run that can be asked: a tiny model with real features of real text, made without Ray in a few seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch

from influray import pipeline
from influray.config import Config
from influray.data.catalogue import Catalogue
from influray.features.gradient import GradientFeaturizer
from influray.features.representation import RepresentationFeaturizer
from influray.model.checkpoints import AdamMoments, load_checkpoint, save_checkpoint
from influray.model.loading import attach_adapter, attach_new_adapter, load_base
from influray.model.tracked_weights import lora_weights
from influray.protocols import Stores
from influray.runs import Run, open_run
from influray.runtime.selecting import select_and_write
from influray.scorers.inner_product import InnerProduct
from influray.scorers.rows import SplitRows
from influray.store.artifact import ShardStore
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.datastore import Datastore, feature_table, features_digest
from influray.store.run_directory import RunDirectory
from tests.tiny import chat, pool_rows, target_rows, write_jsonl, write_tiny_model
from tests.unit.synthetic_run import HOSTILE, HOSTILE_SOURCE

WEIGHTS = {"gradient": (0.75, 0.25), "representation": (1.0,)}


def build_asked_run(folder: Path, *, featurizer: str = "gradient", similarity: str = "cosine") -> Run:
    """Write a run of 24 pool rows and one hostile row per text of HOSTILE, 2 tasks, 2 checkpoints, 2 selections."""
    write_tiny_model(folder / "model")
    hostile = [chat(f"hostile-{i}", HOSTILE_SOURCE, text, f"{text} too") for i, text in enumerate(HOSTILE)]
    write_jsonl(folder / "pool.jsonl", [*pool_rows(24), *hostile])
    for task in ("sums", "reversals"):
        write_jsonl(folder / f"{task}.jsonl", target_rows(task))
    run = pipeline.run(_tree(folder, featurizer, similarity), until="data")
    base = load_base(run.config.model)
    weights = WEIGHTS[featurizer]
    if featurizer == "gradient":
        for number in range(1, len(weights) + 1):
            _checkpoint(run.directory, run.config, number)
    for split in ("target", "pool"):
        for number in range(1, len(weights) + 1):
            _features(run.directory, run.config, base, split, number)
    _matrix(run.directory, run.config, weights)
    for selector in run.config.selectors:
        select_and_write(run.directory.path, selector.model_dump(), "f" * 64)
    return open_run(run.directory.path)


def _tree(folder: Path, featurizer: str, similarity: str) -> dict[str, Any]:
    return {
        "run_dir": str(folder / "run"),
        "model": {"base": str(folder / "model"), "lora": {"r": 2, "alpha": 4, "targets": ["q_proj", "v_proj"]}},
        "data": {
            "root": str(folder),
            "pool": "pool.jsonl",
            "max_tokens": 128,
            "targets": {"sums": "sums.jsonl", "reversals": "reversals.jsonl"},
            "target_end_token": False,
        },
        "features": {"featurizer": featurizer, "projector": {"name": "rademacher", "dimension": 64}},
        "attribution": {"options": {} if similarity == "cosine" else {"similarity": similarity}},
        "selectors": [
            {"name": "bids", "method": "bids", "budget": 6},
            {"name": "random", "method": "random", "budget": 6},
        ],
    }


def _checkpoint(directory: RunDirectory, config: Config, number: int) -> None:
    model = attach_new_adapter(load_base(config.model), config.model.lora, seed=number)
    generator = torch.Generator().manual_seed(number)
    with torch.no_grad():
        for weight in lora_weights(model):
            weight.module.weight.copy_(0.2 * torch.randn(weight.module.weight.shape, generator=generator))
    shapes = {weight.name: weight.module.weight.shape for weight in lora_weights(model)}
    first = {name: 1e-3 * torch.randn(shape, generator=generator) for name, shape in shapes.items()}
    second = {name: value**2 + 1e-8 for name, value in first.items()}
    moments = AdamMoments(exp_avg=first, exp_avg_sq=second, beta1=0.9, beta2=0.999, epsilon=1e-8, step=10)
    folder = directory.checkpoint(number)
    save_checkpoint(folder, model, moments, epoch=number, mean_learning_rate=1e-3 / number, rows=24, losses=[1.0])


def _features(directory: RunDirectory, config: Config, base: Any, split: str, number: int) -> None:
    if config.features.featurizer == "gradient":
        checkpoint = load_checkpoint(directory.checkpoint(number))
        model = attach_adapter(load_base(config.model), checkpoint.adapter)
        moments, direction = (checkpoint.moments(), "adam") if split == "pool" else (None, "sgd")
        featurizer: Any = GradientFeaturizer(model, config.features.at(number), moments, direction)
    else:
        featurizer = RepresentationFeaturizer(base)
    catalogue = Catalogue(directory.data(split))
    block = featurizer.compute(catalogue.tokenized(0, len(catalogue)))
    assert np.array_equal(block.row_B, np.arange(len(catalogue)))
    store = ShardStore(directory.features(split, number))
    store.commit("all", feature_table([block], featurizer.dimension), {})
    store.freeze(["all"], {"dimension": featurizer.dimension, "featurizer": config.features.featurizer})


def _matrix(directory: RunDirectory, config: Config, weights: tuple[float, ...]) -> None:
    pool, target = (SplitRows(directory, split, len(weights)).all() for split in ("pool", "target"))
    scorer = InnerProduct(Stores(weights), **config.attribution.options)
    store = ShardStore(directory.attribution)
    store.commit("all", attribution_table(pool.row_B, scorer.score(pool, target, {})), {})
    manifests = [Datastore(directory.features("pool", k)).manifest for k in range(1, len(weights) + 1)]
    facts = {
        "fingerprint": "m" * 64,
        "weights": list(weights),
        "scorer": config.attribution.scorer,
        "options": config.attribution.options,
        "pool_features": features_digest([[part["sha256"] for part in one["parts"]] for one in manifests]),
    }
    ids = [Catalogue(directory.data("target")).ids[row] for row in target.row_B.tolist()]
    commit_attribution(store, ["all"], facts, target.row_B, ids, target.group_B)
