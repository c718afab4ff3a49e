"""Kills for memory, by Ray's own monitor, in everything that waits for workers; and the end of a cluster's processes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from influray.miniature import BASE
from influray.miniature.world import Size, write_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

SCRIPT = Path(__file__).with_name("deaths.py")


def own_mounts() -> bool:
    """Return whether a process may mount something that no other one sees."""
    if os.geteuid() != 0 or shutil.which("unshare") is None:
        return False
    return subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode == 0


needs_mounts = pytest.mark.skipif(not own_mounts(), reason="what stands for /proc/meminfo needs root and unshare")


def deaths(folder: Path, *what: str) -> tuple[dict[str, Any], str]:
    """Return what the script found, and its standard error; it ends soon after the kill, with one line there."""
    command = ["unshare", "-m", sys.executable, str(SCRIPT), str(folder), *what]
    environment = {**os.environ, "PYTHONPATH": str(SCRIPT.parents[2])}
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, env=environment)
    ended = time.time()
    assert done.returncode == 1, done.stderr[-3000:]
    found, end = (json.loads(line) for line in done.stdout.splitlines() if line.startswith("{"))
    assert ended - end["killed"] < 15
    assert "Raylet is terminated" not in done.stdout
    assert "Traceback" not in done.stderr
    return found, done.stderr


@needs_mounts
def test_kills_for_memory_are_survived_everywhere_with_fewer_side_by_side_and_a_killed_raylet_ends_the_run(tmp_path):
    found, told = deaths(tmp_path, "memory", "raylet")
    assert found["pool"] == [6, True, 1], "all shards are there, by one worker at last"
    assert found["hopeless"].startswith("features.token_budget (now 64): pool rows 2-2 was killed for memory")
    assert found["training"][0] == ["0", "1", "2"]
    assert found["columns"] == [list(range(6)), True]
    assert found["index"] == list(range(4))
    assert told.count("Ray's raylet") == 1


@needs_mounts
def test_a_killed_control_service_ends_the_run_too(tmp_path):
    found, told = deaths(tmp_path, "gcs_server")
    assert found == {}
    assert told.count("Ray's gcs_server") == 1


def test_sigterm_before_there_is_a_cluster_ends_the_command_with_130(tmp_path):
    write_world(tmp_path / "world", 0, Size(pool=64, targets=4, test=2))
    tasks = sorted(path.stem for path in (tmp_path / "world" / "targets").glob("*.jsonl"))
    tree = {
        "model": {"base": str(BASE)},
        "data": {
            "root": str(tmp_path / "world"),
            "pool": "pool.jsonl",
            "targets": {task: f"targets/{task}.jsonl" for task in tasks},
        },
        "selectors": [{"name": "bids", "method": "bids", "budget": 0.25}],
    }
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(tree))
    command = [sys.executable, "-m", "influray", "run", str(tmp_path / "config.yaml")]
    command += ["--run-dir", str(tmp_path / "run")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / "run" / "lease.json").exists():
        assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=120)
    assert process.returncode == 130, told
    assert "interrupted; the same command goes on from here (exit 130)" in told
    assert "Traceback" not in told
