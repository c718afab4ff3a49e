"""Datastores and the attribution matrix of a run directory, made of random rows: no text, no model, no Ray."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from influray.protocols import FeatureBlock, FeatureRows, Stores
from influray.scorers.inner_product import InnerProduct
from influray.store.artifact import ShardStore, read_manifest
from influray.store.attribution import attribution_table, commit_attribution
from influray.store.datastore import Datastore, feature_table, features_digest
from influray.store.run_directory import RunDirectory


def unit_rows(rows: int, dimension: int, generator: np.random.Generator) -> np.ndarray:
    """Unit rows, float16, whose spectrum falls as that of gradient features does."""
    wide = generator.standard_normal((rows, dimension)) * np.arange(1, dimension + 1) ** -0.5
    return (wide / np.linalg.norm(wide, axis=1, keepdims=True)).astype(np.float16)


def write_store(
    folder: Path,
    row_N: np.ndarray,
    feature_ND: np.ndarray,
    *,
    cuts: Sequence[int] = (),
    encoding: str = "float16",
    seed: int = 0,
    plain: dict[str, np.ndarray] | None = None,
) -> None:
    """Commit a datastore whose parts end at the lines `cuts`; an empty part leaves no file."""
    generator = np.random.default_rng(seed)
    columns = {name: generator.uniform(0.3, 3, len(row_N)).astype(np.float32) for name in ("norm", "grad_norm", "loss")}
    columns |= plain or {}
    store, keys = ShardStore(folder), []
    for start, stop in zip([0, *cuts], [*cuts, len(row_N)], strict=True):
        here = slice(start, stop)
        numbers = [columns[name][here] for name in ("norm", "grad_norm", "loss")]
        block = FeatureBlock(row_N[here], feature_ND[here], *numbers, np.ones(stop - start, np.int32))
        keys.append(f"{len(keys):04d}-{seed}")
        table = feature_table([block], feature_ND.shape[1], encoding) if stop > start else None
        store.commit(keys[-1], table, {})
    bounds = [0, feature_ND.shape[1]]
    store.freeze(keys, {"dimension": feature_ND.shape[1], "featurizer": "gradient", "bounds": bounds})


def write_matrix(directory: RunDirectory, weights: Sequence[float], tasks: Sequence[str], similarity: str) -> None:
    """Commit the matrix of what the datastores hold, by the scorer itself."""
    numbers = range(1, len(weights) + 1)
    pool, target = (read_rows(directory, split, len(weights)) for split in ("pool", "target"))
    scorer = InnerProduct(Stores(tuple(weights)), similarity)
    store = ShardStore(directory.attribution)
    store.commit("all", attribution_table(pool.row_B, scorer.score(pool, target, {})), {})
    manifests = [read_manifest(directory.features("pool", k)) or {} for k in numbers]
    facts = {
        "fingerprint": "m" * 64,
        "weights": list(weights),
        "scorer": "inner_product",
        "options": {} if similarity == "cosine" else {"similarity": similarity},
        "pool_features": features_digest([[part["sha256"] for part in one["parts"]] for one in manifests]),
    }
    ids = [f"target-{row}" for row in target.row_B.tolist()]
    commit_attribution(store, ["all"], facts, target.row_B, ids, [tasks[row] for row in target.row_B.tolist()])


def read_rows(directory: RunDirectory, split: str, checkpoints: int) -> FeatureRows:
    """The rows of all datastores that every checkpoint has, read whole."""
    stores = [Datastore(directory.features(split, k)) for k in range(1, checkpoints + 1)]
    common = set.intersection(*(set(store.column("row").tolist()) for store in stores))
    row_B = np.array(sorted(common), np.int64)
    keep = [np.isin(store.column("row"), row_B) for store in stores]
    features = [store.features()[keep_N] for store, keep_N in zip(stores, keep, strict=True)]
    facts = [{"norm": store.column("norm")[keep_N]} for store, keep_N in zip(stores, keep, strict=True)]
    return FeatureRows(row_B, [""] * len(row_B), features, facts)


def random_run(
    folder: Path,
    *,
    rows: int = 60,
    dimension: int = 16,
    weights: Sequence[float] = (0.75, 0.25),
    encoding: str = "float16",
    similarity: str = "cosine",
    parts: int = 3,
    targets: int = 5,
    seed: int = 0,
) -> RunDirectory:
    """A run whose checkpoints each lost other rows of the pool, and the last one a target."""
    directory = RunDirectory(folder)
    generator = np.random.default_rng(seed)
    for k in range(1, len(weights) + 1):
        lost = generator.choice(rows, min(rows - 1, k + 1), replace=False)
        row_N = np.setdiff1d(np.arange(rows), lost)
        cuts = np.sort(generator.integers(0, len(row_N) + 1, parts - 1)).tolist()
        features = unit_rows(len(row_N), dimension, generator)
        write_store(directory.features("pool", k), row_N, features, cuts=cuts, encoding=encoding, seed=seed + k)
        row_T = np.arange(targets) if k < len(weights) else np.delete(np.arange(targets), 1)
        write_store(directory.features("target", k), row_T, unit_rows(len(row_T), dimension, generator), seed=9 + k)
    write_matrix(directory, weights, ["ab"[row % 2] for row in range(targets)], similarity)
    return directory
