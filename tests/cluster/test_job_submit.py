"""A run as a Ray job: its end reaches who submitted it, and stopped and submitted again it ends in the same bytes."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from influray.store.artifact import hash_file
from tests.cluster.local_cluster import RAY, LocalCluster, local_cluster, unavailable
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]

SCRIPT = Path(__file__).parents[2] / "jobs" / "run.py"
TOKEN = "f00dfacef00dfacef00dfacef00dface"
ENVIRONMENT = {
    "RAY_AUTH_MODE": "token",
    "RAY_AUTH_TOKEN": TOKEN,
    "RAY_API_SERVER_ADDRESS": "http://127.0.0.1:8265",
    "PATH": f"{Path(RAY).parent}:{os.environ['PATH']}",  # a job's `python` is that of the head
    "PYTHONPATH": str(SCRIPT.parents[1]),  # where the plug-in of the configs is
    "RAY_metrics_report_interval_ms": "1000",
}
SECONDS = 180.0


@pytest.fixture(scope="module")
def cluster():
    head = ["--num-cpus=0", "--include-dashboard=true", "--dashboard-host=127.0.0.1", "--metrics-export-port=8080"]
    with local_cluster(1, 2, ENVIRONMENT, head) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("jobs")
    write_tiny_model(folder / "model")
    write_jsonl(folder / "pool.jsonl", pool_rows(48))
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


def config(world: Path, name: str, options: dict[str, Any] | None = None, **data: Any) -> Path:
    """A config whose shards rest as the options say, as the path of its file."""
    tree = {
        "run_dir": str(world / name),
        "model": {"base": str(world / "model")},
        "data": {
            "root": str(world),
            "pool": "pool.jsonl",
            "max_tokens": 128,
            "targets": {task: f"targets/{task}.jsonl" for task in ("sums", "reversals")},
            **data,
        },
        "features": {
            "featurizer": "tests.cluster.resting:Resting",
            "options": options or {},
            "rows_per_shard": 2,
        },
        "selectors": [{"name": "bids", "method": "bids", "budget": 6}],
        "resources": {"workers": 2},
    }
    path = world / f"{name}.yaml"
    path.write_text(yaml.safe_dump(tree))
    return path


def ray_job(cluster: LocalCluster, *argv: str) -> subprocess.CompletedProcess[str]:
    process = cluster.popen([RAY, "job", *argv], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    out, _ = process.communicate(timeout=SECONDS)
    return subprocess.CompletedProcess(argv, process.returncode, re.sub(r"\x1b\[[0-9;]*m", "", out))


def entrypoint(path: Path) -> list[str]:
    return ["--", "python", str(SCRIPT), str(path)]


def content(run: Path) -> dict[str, list[str]]:
    """The hashes of all parts in the order of their rows, and of what was selected."""
    manifests = sorted(run.glob("**/manifest.json"))
    found = {str(m.parent.relative_to(run)): json.loads(m.read_bytes()) for m in manifests}
    parts = {name: [part["sha256"] for part in m["parts"]] for name, m in found.items() if "parts" in m}
    return {**parts, "selected": [hash_file(run / "selection" / "bids" / "selected.jsonl")]}


def receipts(run: Path) -> dict[str, int]:
    return {str(p): p.stat().st_mtime_ns for p in run.glob("features/pool/checkpoint-1/_receipts/*.json")}


def metrics(cluster: LocalCluster) -> str:
    code = "import urllib.request as u; print(u.urlopen('http://127.0.0.1:8080/metrics').read().decode())"
    found = subprocess.run(cluster.command(["python3", "-c", code]), capture_output=True, text=True)
    return found.stdout


def test_a_wrong_config_reaches_who_submitted_it(cluster, world):
    done = ray_job(cluster, "submit", *entrypoint(config(world, "wrong", pool="absent.jsonl")))
    assert done.returncode == 1, done.stdout
    assert "influray: DataError: data.pool.0" in done.stdout
    assert "absent.jsonl" in done.stdout
    assert "(exit 2)" in done.stdout
    assert "Traceback" not in done.stdout


def test_a_stopped_job_submitted_again_does_the_rest_and_ends_in_the_same_bytes(cluster, world):
    """On the way: per-worker logs, Ray metrics, and a token that is written nowhere."""
    undisturbed = ray_job(cluster, "submit", *entrypoint(config(world, "whole")))
    assert undisturbed.returncode == 0, undisturbed.stdout
    assert "succeeded" in undisturbed.stdout

    # The same rows: how long a shard takes is an option, so its name in the keys differs, and no byte of the parts.
    rested = world / "rested"
    path = config(world, "stopped", {"milliseconds": 2500, "until": str(rested)})
    run = world / "stopped"
    started = ray_job(cluster, "submit", "--no-wait", "--submission-id", "first", *entrypoint(path))
    assert started.returncode == 0, started.stdout
    deadline, seen = time.monotonic() + SECONDS, ""
    while not ("influray_rows" in seen and "influray_shards_left" in seen and len(receipts(run)) >= 3):
        assert time.monotonic() < deadline, f"{ray_job(cluster, 'logs', 'first').stdout[-2000:]}\n{seen[-500:]}"
        seen = metrics(cluster)
        time.sleep(0.5)
    stopped = ray_job(cluster, "stop", "first")
    assert stopped.returncode == 0, stopped.stdout
    assert "was stopped" in stopped.stdout, "what Ray says of the status STOPPED alone"
    assert "the same command goes on from here (exit 130)" in ray_job(cluster, "logs", "first").stdout
    before = receipts(run)
    assert 3 <= len(before) < 24
    assert json.loads((run / "run.json").read_bytes())["steps"]["featurize"]["status"] == "interrupted"

    rested.touch()
    again = ray_job(cluster, "submit", *entrypoint(path))
    assert again.returncode == 0, again.stdout
    assert before.items() <= receipts(run).items(), "a committed shard was made again"
    assert content(run) == content(world / "whole")

    assert re.search(r'influray_rows\S*\{[^}]*split="pool"[^}]*\} [1-9]', seen)
    assert re.search(r'influray_shards_left\{[^}]*split="pool"[^}]*\} [1-9]', seen)
    assert list((run / "logs").glob("worker-*.log"))
    lines = [json.loads(line) for line in (run / "logs" / "metrics.jsonl").read_text().splitlines()]
    assert any(line["workers"] for line in lines if line["step"] == "featurize")
    for file in run.rglob("*"):
        assert not file.is_file() or TOKEN.encode() not in file.read_bytes(), f"{file} holds the cluster's token"
