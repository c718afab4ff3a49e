"""Machines that share a bucket and no disk: the bytes of a run on one machine."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests.stored_runs import ONE_MACHINE, finish, gradients, in_bucket, on_disk, start, tree
from tests.tiny import pool_rows, write_world

pytestmark = pytest.mark.cluster

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
import influray.data.costs
influray.data.costs.DataRates = lambda rates=influray.data.costs.DataRates: rates(startup=0.0)
"""


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


def test_machines_that_share_no_disk_carry_out_a_run_together(store, world, tmp_path):
    """Gradient features: warmup, checkpoints, catalogue, shards, matrix and selection all go through the bucket."""
    caches = [tmp_path / "worker-1", tmp_path / "worker-2"]
    finish(start(ONE_MACHINE, [[gradients(world), str(tmp_path / "disk")]], tmp_path / "none"))
    config = gradients(world, workers=2, cpus_per_worker=1)
    finish(start(THREE_MACHINES, [config, store.uri("apart"), [str(c) for c in caches]], tmp_path / "driver"))
    assert in_bucket(store, "apart") == on_disk(tmp_path / "disk")
    made = [{path.name for path in cache.rglob("features/*/*/part-*.arrow")} for cache in caches]
    everything = {name.rpartition("/")[2] for name in store.names("apart/features") if "part-" in name}
    assert made[0]
    assert made[1]
    assert made[0] | made[1] == everything
    assert list((tmp_path / "driver").rglob("selection.parquet")), "the report reads it"


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
