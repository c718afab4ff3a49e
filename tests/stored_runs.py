"""Small runs in processes of their own, whose run directories are on a disk or in a bucket."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from tests.object_store import Store

REPOSITORY = Path(__file__).parents[1]
CHOSEN = [f"selection/{name}/{file}" for name in ("bids", "random") for file in ("selected.jsonl", "selection.parquet")]

# Processes of their own: each is a machine with a cache folder of its own, and a Ray beside that of other tests.
ONE_MACHINE = """
import json, os, sys, time
import influray
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect

with connect(ResourcesConfig()):
    for config, place in json.loads(sys.argv[1]):
        began = time.monotonic()
        influray.run(config, run_dir=place)
        print(f"{place}: {time.monotonic() - began:.1f} s", file=sys.stderr)
        assert "://" in place or not os.path.exists(os.environ["XDG_CACHE_HOME"]), "a run on a disk has a mirror"
"""


def tree(world: Path, **changes: Any) -> dict[str, Any]:
    base = {
        "model": {"base": str(world / "model"), "lora": {"r": 2, "alpha": 4, "targets": ["q_proj"]}},
        "data": {
            "root": str(world),
            "pool": "pool",
            "max_tokens": 128,
            "targets": {"sums": "targets/sums.jsonl", "reversals": "targets/reversals.jsonl"},
        },
        "warmup": {"fraction": 0.3, "epochs": 1, "learning_rate": 1e-2, "batch_size": 4, "device_batch_size": 2},
        "features": {"projector": {"name": "rademacher", "dimension": 64}, "rows_per_shard": 8},
        "selectors": [{"name": name, "method": name, "budget": 6} for name in ("bids", "random")],
        "resources": {"workers": 1, "cpus_per_worker": 0.5},
    }
    return {**base, **changes}


def words(world: Path) -> dict[str, Any]:
    """A config without a model, in many shards."""
    return tree(world, features={"featurizer": "ngram", "rows_per_shard": 2}, attribution={"scorer": "dsir"})


def gradients(world: Path, **resources: Any) -> dict[str, Any]:
    """A config that trains with Ray Train, whose books are where the run is."""
    return tree(world, resources={"workers": 1, "cpus_per_worker": 0.5, "training_workers": 2, **resources})


def start(script: str, arguments: list[Any], cache: Path, also: Path = REPOSITORY) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": f"{REPOSITORY}{os.pathsep}{also}", "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-c", script, json.dumps(arguments)]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)


def finish(process: subprocess.Popen[str]) -> str:
    _, told = process.communicate(timeout=500)
    assert process.returncode == 0, told[-4000:]
    return told


def on_disk(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in CHOSEN}


def in_bucket(store: Store, folder: str) -> dict[str, bytes]:
    return {name: store.read(f"{folder}/{name}") for name in CHOSEN}
