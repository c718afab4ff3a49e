"""Whole runs on object storage: the bytes of a run on a disk, whoever sees whose disk, whatever the storage does."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import Store, failing, serving, share
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = pytest.mark.ray

REPOSITORY = Path(__file__).parents[2]
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
THREE_MACHINES = """
import json, sys
from ray.cluster_utils import Cluster
import influray

config, place, caches = json.loads(sys.argv[1])
node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
for cache in caches:
    cluster.add_node(num_cpus=1, env_vars={"XDG_CACHE_HOME": cache}, **node)
influray.run(config, run_dir=place, address=cluster.address)
cluster.shutdown()
"""
# Data workers pay off for any pool.
AT_ONCE = """
import influray.planning
influray.planning.Rates = lambda rates=influray.planning.Rates: rates(startup=0.0)
"""


@pytest.fixture(scope="module")
def store():
    with serving() as found:
        yield found


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool" / "a.jsonl", pool_rows(24)[:16])
    write_jsonl(folder / "pool" / "b.jsonl", pool_rows(24)[16:])
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


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


def receipts(store: Store, folder: str) -> dict[str, bytes]:
    """The receipts of feature shards of the pool, as they are."""
    place = f"{folder}/features/pool/checkpoint-1/_receipts"
    return {name: store.read(f"{place}/{name}") for name in store.names(place)}


@pytest.fixture(scope="module")
def gone(store, world, tmp_path_factory) -> Iterator[subprocess.Popen[str]]:
    """A run on a storage that goes away when the matrix is written."""
    folder = tmp_path_factory.mktemp("gone")
    seen: list[str] = []

    def fault(method: str, path: str) -> str:
        if "/attribution" in path and method == "PUT":
            seen.append(path)
        return "500" if seen else ""

    config = words(world) | {"resources": {"workers": 1, "cpus_per_worker": 0.5, "max_attempts": 1}}
    (folder / "config.json").write_text(json.dumps(config))
    # In all of its processes, of which some would go on trying for a minute.
    (folder / "sitecustomize.py").write_text("from influray.store import location\nlocation.ATTEMPTS = 1\n")
    script = "import json, sys; from influray.cli import main; "
    script += "sys.argv = ['influray', 'run', *json.loads(sys.argv[1])]; main()"
    with failing(store, fault) as bad:
        arguments = [str(folder / "config.json"), "--run-dir", bad.uri("gone")]
        process = start(script, arguments, folder / "cache", also=folder)
        yield process
        process.kill()


@pytest.fixture(scope="module")
def runs(store, world, gone, tmp_path_factory) -> dict[str, Any]:
    """A driver killed in the middle of its features, and then from another machine: runs on a disk, with gradients
    and as the killed one, and the killed one again; beside them, since it mostly waits, one on a storage that fails now
    and then."""
    folder = tmp_path_factory.mktemp("machines")
    killed = start(ONE_MACHINE, [[words(world), store.uri("killed")]], folder / "first")
    deadline = time.monotonic() + 120
    while len(receipts(store, "killed")) < 4:
        assert killed.poll() is None, killed.communicate()[1][-4000:]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    killed.send_signal(signal.SIGKILL)
    killed.communicate(timeout=60)
    before = receipts(store, "killed")
    lease = store.read("killed/lease.json")
    assert b"hushhush" not in lease
    with failing(store, share(1, _500=0.02, cut=0.006, stall=0.001), stall_seconds=3) as bad:
        fails = start(ONE_MACHINE, [[words(world), bad.uri("failing", timeout="2")]], folder / "third")
        places = [str(folder / "disk"), store.uri("killed")]
        todo = [[gradients(world), str(folder / "gradients")], *([words(world), place] for place in places)]
        told = finish(start(ONE_MACHINE, todo, folder / "second")) + finish(fails)
    return {"disk": folder / "disk", "before": before, "faults": bad.faults, "told": told, "folder": folder}


def test_a_killed_driver_is_resumed_from_another_machine_and_only_missing_shards_are_computed(store, runs):
    before, after = runs["before"], receipts(store, "killed")
    assert 4 <= len(before) < len(after) == 12
    assert {name: after[name] for name in before} == before
    assert in_bucket(store, "killed") == on_disk(runs["disk"])
    assert not [name for name in store.names("killed") if "lease" in name]


def test_a_storage_that_fails_now_and_then_gives_the_same_bytes(store, runs):
    assert runs["faults"]["500"] >= 5
    assert runs["faults"]["cut"] >= 2
    assert in_bucket(store, "failing") == on_disk(runs["disk"])


def test_the_run_is_on_the_storage_whole_and_holds_no_credentials(store, runs):
    names = store.names("killed")
    files = {str(p.relative_to(runs["disk"])) for p in runs["disk"].rglob("*") if p.is_file()}
    ours = {"part-", "worker-", "lease"}

    def plain(found: set[str]) -> set[str]:
        return {name for name in found if not any(part in name for part in ours)}

    assert plain(names) == plain(files)
    assert len([name for name in names if "logs/worker-" in name]) >= 1
    for name in names:
        assert b"hushhush" not in store.read(f"killed/{name}"), name
    assert "hushhush" not in runs["told"]


@pytest.mark.cluster
def test_machines_that_share_no_disk_carry_out_a_run_together(store, world, runs, tmp_path):
    """Gradient features: warmup, checkpoints, catalogue, shards, matrix and selection all go through the bucket."""
    caches = [tmp_path / "worker-1", tmp_path / "worker-2"]
    config = gradients(world, workers=2, cpus_per_worker=1)
    finish(start(THREE_MACHINES, [config, store.uri("apart"), [str(c) for c in caches]], tmp_path / "driver"))
    assert in_bucket(store, "apart") == on_disk(runs["folder"] / "gradients")
    made = [{path.name for path in cache.rglob("features/*/*/part-*.arrow")} for cache in caches]
    everything = {name.rpartition("/")[2] for name in store.names("apart/features") if "part-" in name}
    assert made[0]
    assert made[1]
    assert made[0] | made[1] == everything
    assert list((tmp_path / "driver").rglob("selection.parquet")), "the report reads it"


@pytest.mark.cluster
def test_machines_that_share_no_disk_make_a_catalogue_together(store, world, tmp_path):
    """The pool lies in the bucket as well, and who reads of it fetches a copy."""
    rows = [pool_rows(2000)[i::4] for i in range(4)]
    for number, part in enumerate(rows):
        store.write(f"pool/{number}.jsonl", "".join(json.dumps(row) + "\n" for row in part).encode())
    caches = [tmp_path / "worker-1", tmp_path / "worker-2"]
    data = {**tree(world)["data"], "pool": store.uri("pool")}
    config = tree(world, data=data, resources={"workers": 2, "cpus_per_worker": 1})
    alone = "import json, sys, influray; influray.run(json.loads(sys.argv[1])[0], until='data')"
    finish(start(alone, [{**config, "run_dir": store.uri("alone")}], tmp_path / "none"))
    script = AT_ONCE + THREE_MACHINES.replace("run_dir=place", "run_dir=place, until='data'")
    finish(start(script, [config, store.uri("crew"), [str(c) for c in caches]], tmp_path / "driver"))
    alone, crew = (json.loads(store.read(f"{run}/data/pool/manifest.json")) for run in ("alone", "crew"))
    assert crew["digest"] == alone["digest"]
    assert crew["files"] == alone["files"]
    assert not [name for name in store.names("crew") if "/drafts/" in name]
    assert all(list(cache.rglob("drafts/part-*.arrow")) for cache in caches), "one machine did it all"
    assert any(list(cache.rglob("pool/*.jsonl")) for cache in caches), "the driver read it"


def test_a_storage_that_goes_away_ends_the_run_with_what_to_do(store, gone):
    _, told = gone.communicate(timeout=300)
    assert gone.returncode == 1
    assert "run the same command again" in " ".join(told.split())
    assert "Traceback" not in told
    assert not store.names("gone/attribution")
    assert "features/pool/checkpoint-1/manifest.json" in store.names("gone")
