"""Time exact and approximate queries against plain NumPy, torch and a faiss flat index, all in one run.

    python jobs/benchmark_index.py --rows 1000000 --dimension 1024

The vectors are random with a covariance spectrum that falls as a power of the rank, as that of gradient features does;
isotropic noise has no structure that an index could use. Rounds of all contestants are interleaved and the best of
each is shown, since other programs may share the machine.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import threadpoolctl
import torch

from influray.ask.index import PoolIndex
from influray.ask.index_build import build_index
from influray.ask.index_kinds import faiss_module
from influray.protocols import FeatureBlock
from influray.store.artifact import ShardStore, read_manifest, write_manifest
from influray.store.datastore import feature_table, features_digest
from influray.store.exact_query import exact_query
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors, target_vectors

PART = 8192  # rows of a part of the datastore


def main() -> None:
    """Build a run of random features, ask it in every way, and print what each took as JSON."""
    parser = argparse.ArgumentParser(description="Time queries against NumPy, torch and faiss.")
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--dimension", type=int, default=1024)
    parser.add_argument("--targets", type=int, default=350)
    parser.add_argument("--power", type=float, default=-1.0, help="of the rank, in the spectrum of the covariance")
    parser.add_argument("--kinds", nargs="+", default=["flat", "ivf"])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--folder", type=Path, default=None, help="keeps the run here; default: a temporary folder")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    faiss_module().omp_set_num_threads(arguments.threads)
    threadpoolctl.threadpool_limits(arguments.threads)
    with tempfile.TemporaryDirectory() as temporary:
        directory = RunDirectory(arguments.folder or temporary)
        if read_manifest(directory.attribution) is None:
            make_run(directory, arguments)
        print(json.dumps(measure(directory, arguments), indent=1))


def make_run(directory: RunDirectory, arguments: argparse.Namespace) -> None:
    """Write datastores of random unit rows, and the manifest of a matrix of which no line is needed here."""
    generator = torch.Generator().manual_seed(0)
    scale_D = torch.arange(1, arguments.dimension + 1) ** (arguments.power / 2)
    for split, rows in (("pool", arguments.rows), ("target", arguments.targets)):
        store, keys = ShardStore(directory.features(split, 1)), []
        for start in range(0, rows, PART):
            count = min(PART, rows - start)
            wide_BD = torch.randn(count, arguments.dimension, generator=generator) * scale_D
            unit_BD = torch.nn.functional.normalize(wide_BD, dim=1).half().numpy()
            one_B = np.ones(count, np.float32)
            block = FeatureBlock(np.arange(start, start + count), unit_BD, one_B, one_B, one_B, one_B.astype(np.int32))
            keys.append(f"{start:012d}")
            store.commit(keys[-1], feature_table([block], arguments.dimension), {})
        store.freeze(keys, {"dimension": arguments.dimension})
    manifest = read_manifest(directory.features("pool", 1)) or {}
    directory.attribution.mkdir(parents=True, exist_ok=True)
    parts = features_digest([[part["sha256"] for part in manifest["parts"]]])
    facts = {"weights": [1.0], "scorer": "inner_product", "options": {}, "pool_features": parts}
    write_manifest(directory.attribution, facts)


def measure(directory: RunDirectory, arguments: argparse.Namespace) -> dict[str, Any]:
    """Return milliseconds of one query and of a batch, by contestant, and what indexes found."""
    vectors, (_, target_TF) = PoolVectors(directory), target_vectors(directory)
    one_QF = target_TF[:1]
    found: dict[str, Any] = {"rows": len(vectors), "dimension": vectors.dimension, "threads": arguments.threads}
    batch = f"{len(target_TF)}"
    calls: dict[str, Callable[[], object]] = {
        "exact_query over float16 maps, one": lambda: exact_query(vectors, one_QF, 100),
    }
    for kind in arguments.kinds:
        started = time.perf_counter()
        manifest, _ = build_index(directory, kind)
        facts = {
            "build_seconds": round(time.perf_counter() - started, 1),
            "bytes": sum(part["bytes"] for part in manifest["parts"]),
        }
        found[f"index {kind}"] = {**facts, "recall": manifest["recall"], "setting": manifest["setting"]}
        index = PoolIndex(directory)
        calls[f"index {kind}, one"] = lambda index=index: index.search(one_QF, 100)
        if kind == "flat":
            calls[f"index {kind}, {batch}"] = lambda index=index: index.search(target_TF, 100)
        for shard in manifest["parts"]:  # kept in memory; the next kind takes its place on disk
            (directory.index / shard["file"]).unlink()
        (directory.index / "manifest.json").unlink()
    found["milliseconds"] = timed(calls | dense(vectors, target_TF), arguments.rounds)
    calls.clear()  # its memory is free again for faiss
    flat = faiss_module().IndexFlatIP(vectors.dimension)
    for _, block_BF in vectors.blocks(PART):
        flat.add(block_BF)
    found["milliseconds"] |= timed(
        {
            "faiss flat, one": lambda: flat.search(one_QF, 100),
            f"faiss flat, {batch}": lambda: flat.search(target_TF, 100),
        },
        arguments.rounds,
    )
    return found


def dense(vectors: PoolVectors, target_TF: np.ndarray) -> dict[str, Callable[[], object]]:
    """Return contestants that hold all vectors in memory as float32."""
    whole_NF = np.empty((len(vectors), vectors.dimension), np.float32)
    for start in range(0, len(vectors), PART):
        vectors.block(start, whole_NF[start : start + PART])
    tensor_NF, target = torch.from_numpy(whole_NF), torch.from_numpy(target_TF)
    return {
        "read float32 once (sum by torch)": lambda: tensor_NF.sum(),
        "numpy product and top 100, one": lambda: top(whole_NF @ target_TF[0]),
        "torch product and top 100, one": lambda: torch.topk(tensor_NF @ target[0], 100),
        f"torch product, {len(target_TF)}": lambda: product(tensor_NF, target),
    }


def product(tensor_NF: torch.Tensor, target_TF: torch.Tensor) -> None:
    """Multiply in blocks: the whole product would be larger than the vectors."""
    for start in range(0, len(tensor_NF), PART):
        torch.mm(tensor_NF[start : start + PART], target_TF.T)


def top(score_N: np.ndarray) -> np.ndarray:
    """Return the 100 highest positions, best first."""
    best = np.argpartition(score_N, -100)[-100:]
    return best[np.argsort(-score_N[best])]


def timed(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Return the least wall and processor milliseconds of each call over interleaved rounds; the first warms up."""
    best: dict[str, dict[str, float]] = {name: {"wall": np.inf, "cpu": np.inf} for name in calls}
    for _ in range(rounds + 1):
        for name, call in calls.items():
            wall, cpu = time.perf_counter(), time.process_time()
            call()
            took = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
            best[name] = {unit: min(best[name][unit], round(1000 * took[unit], 2)) for unit in took}
    return best


if __name__ == "__main__":
    main()
