"""A pool on several nodes: one is taken away in the middle, two come late, and every shard is there once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from influray.store.artifact import ShardStore, hash_file
from tests.integration.shard_workers import plan

pytestmark = pytest.mark.cluster

REPOSITORY = Path(__file__).parents[2]

# A process of its own: it becomes the driver of a cluster beside the one that other tests are connected to.
DRIVER = """
import json, sys, time
from pathlib import Path
from ray.cluster_utils import Cluster
from influray.config import ResourcesConfig
from influray.runtime.cluster import connect, resolve_resources
from tests.integration.shard_workers import plan, scripted_pool

folder = Path(sys.argv[1])
node = {"object_store_memory": 80 * 2**20, "include_dashboard": False}
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **node})
nodes = [cluster.add_node(num_cpus=1, **node) for _ in range(2)]
done, events = [], []

def on_receipt(task, receipt):
    done.append(task.key)
    if len(done) == 4:
        cluster.remove_node(nodes[0], allow_graceful=False)
    if len(done) == 6:
        [cluster.add_node(num_cpus=1, **node) for _ in range(2)]

with connect(ResourcesConfig(), cluster.address) as info:
    assert info.nodes == 3 and info.cpus == 2
    resources = resolve_resources(ResourcesConfig(), info)
    assert resources.workers == 2 and resources.follows
    with scripted_pool(folder / "notes", lambda: resources.room(0.0), pace=0.8, cpus=1) as pool:
        report = pool.run(plan(folder / "store", 40), on_receipt, on_event=lambda e: events.append(e.kind))
cluster.shutdown()
workers = sorted({receipt.details["worker"] for receipt in report.receipts})
print(json.dumps({"lost": report.workers_lost, "workers": len(workers), "events": events}))
"""


def test_a_lost_node_costs_its_shard_in_flight_and_the_pool_grows_with_late_ones(tmp_path):
    process = subprocess.run(
        [sys.executable, "-c", DRIVER, str(tmp_path)],
        env={**os.environ, "PYTHONPATH": str(REPOSITORY)},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
        check=True,
    )
    told = json.loads(process.stdout.splitlines()[-1])
    assert told["lost"] >= 1
    assert told["workers"] == 4, "a late node did nothing"
    store = ShardStore(tmp_path / "store")
    receipts = [store.receipt(task.key) for task in plan(store.folder, 40)]
    files = [receipt.file for receipt in receipts if receipt is not None]
    assert len(set(files)) == 40
    assert [hash_file(store.folder / file) for file in files] == [r.sha256 for r in receipts if r is not None]
