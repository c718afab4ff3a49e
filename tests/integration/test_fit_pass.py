"""The pass of a scorer over the pool, under kills: what is summed is kept, and the bytes are those of a quiet run."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import influray
from influray.store.artifact import ShardStore, hash_file, read_json
from tests.integration.fragile_scorer import taken
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

ROWS, SHARD = 24, 2
GROUPS = list(range(0, ROWS, SHARD))  # the first row of each

# A driver that is killed by what it hears of the third sum.
DRIVER = """
import json, os, signal, sys
import influray
from influray.config import ResourcesConfig
from influray.runtime import scoring

compute, heard = scoring.score, []

def score(*arguments, on_receipt, **more):
    def hear(task, receipt):
        on_receipt(task, receipt)
        heard.append(task)
        if len(heard) == 3:
            os.kill(os.getpid(), signal.SIGKILL)
    return compute(*arguments, on_receipt=hear, **more)

scoring.score = score
influray.run(json.loads(sys.argv[1]), until="select", address=sys.argv[2])
"""


def config(folder: Path, name: str, **options: Any) -> dict[str, Any]:
    return {
        "run_dir": str(folder / name),
        "model": {"base": str(folder / "model")},
        "data": {
            "root": str(folder),
            "pool": "pool.jsonl",
            "targets": {"sums": "sums.jsonl", "reversals": "reversals.jsonl"},
            "max_tokens": 128,
        },
        "features": {"featurizer": "ngram", "rows_per_shard": SHARD},
        "attribution": {
            "scorer": "tests.integration.fragile_scorer:FragileDSIR",
            "options": {"notes": str(folder / f"{name}.notes"), **options},
        },
        "selectors": [{"name": name, "method": name, "budget": 6} for name in ("bids", "dsir")],
        "resources": {"workers": 2, "cpus_per_worker": 0.25},
    }


def made(run_dir: Path) -> dict[str, Any]:
    """The content of state, matrix and selections."""
    found: dict[str, Any] = {}
    for name in ("fit", "attribution"):
        parts = read_json(run_dir / name / "manifest.json")["parts"]
        found[name] = [part["sha256"] for part in parts]
        assert [hash_file(run_dir / name / part["file"]) for part in parts] == found[name]
        assert len(list((run_dir / name).glob("*part-*"))) == len(parts), "sums or a torn file are left over"
    for path in run_dir.glob("selection/*/select*.[jp][sa]*"):
        if path.name != "selection.json":  # names the matrix by its keys, which hold the scorer's options
            found[str(path.relative_to(run_dir))] = hash_file(path)
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")  # its tokenizer
    write_jsonl(folder / "pool.jsonl", pool_rows(ROWS))
    for task in ("sums", "reversals"):
        write_jsonl(folder / f"{task}.jsonl", target_rows(task))
    return folder


@pytest.fixture(scope="module")
def quiet(folder, ray_cluster) -> dict[str, Any]:
    """What a run makes that nobody disturbs."""
    influray.run(config(folder, "quiet"), until="select")
    assert sorted(taken(folder / "quiet.notes")) == GROUPS
    found = made(folder / "quiet")
    assert len(found) == 2 + 2 * 2
    return found


def test_a_worker_that_is_killed_while_it_sums_is_replaced_and_its_sum_is_taken_again(folder, quiet):
    influray.run(config(folder, "worker", die_at=8), until="select")
    assert sorted(taken(folder / "worker.notes")) == sorted([*GROUPS, 8])
    assert made(folder / "worker") == quiet


def test_a_driver_that_is_killed_within_the_pass_leaves_sums_that_the_next_one_does_not_take_again(
    folder, quiet, ray_cluster
):
    tree = config(folder, "driver")
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-c", DRIVER, json.dumps(tree), ray_cluster.address]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr[-4000:]
    store = ShardStore(folder / "driver" / "fit")
    before = {path.name for path in (store.folder / "_receipts").iterdir()}
    assert 3 <= len(before) < len(GROUPS)
    done = len(taken(folder / "driver.notes"))
    influray.run(tree, until="select")
    notes = taken(folder / "driver.notes")
    assert set(notes) == set(GROUPS)
    assert len(notes) - done <= len(GROUPS) - 3
    assert made(folder / "driver") == quiet
