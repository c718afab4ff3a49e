"""The commands of docker/compose.yaml, as they stand there, make a cluster of three nodes and the miniature's selections."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cluster.local_cluster import unavailable

pytestmark = [pytest.mark.cluster, pytest.mark.skipif(bool(unavailable()), reason=unavailable())]

SCRIPT = Path(__file__).parents[2] / "jobs" / "containers.py"


def test_head_workers_and_submitter_run_the_miniature_to_its_report(tmp_path):
    command = [sys.executable, str(SCRIPT), "--env", "DEMO_SIZE=small", "--shared", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=580)
    assert done.returncode == 0, f"{done.stdout[-4000:]}\n{done.stderr[-4000:]}"
    healthy = [line for line in done.stdout.splitlines() if line.endswith("is healthy")]
    assert [healthy[0], *sorted(healthy[1:])] == ["head is healthy", "worker-1 is healthy", "worker-2 is healthy"]
    assert "3 node(s), 2 CPUs" in done.stdout + done.stderr
    run = tmp_path / "influray" / "runs" / "demo"
    steps = json.loads((run / "run.json").read_bytes())["steps"]
    assert {name for name, facts in steps.items() if facts["status"] == "done"} == set(steps)
    assert (run / "report" / "index.html").exists()
