"""Whole runs on object storage: the bytes of a run on a disk, whatever the storage does."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.object_store import Store, failing, share
from tests.stored_runs import ONE_MACHINE, finish, in_bucket, on_disk, start, words
from tests.tiny import write_world

pytestmark = [pytest.mark.ray, pytest.mark.endurance]


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    return write_world(tmp_path_factory.mktemp("world"))


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
    script = "import json, sys; from influray.cli.app import main; "
    script += "sys.argv = ['influray', 'run', *json.loads(sys.argv[1])]; main()"
    with failing(store, fault) as bad:
        arguments = [str(folder / "config.json"), "--run-dir", bad.uri("gone")]
        process = start(script, arguments, folder / "cache", also=folder)
        yield process
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def runs(store, world, gone, tmp_path_factory) -> dict[str, Any]:
    """A driver killed in the middle of its features, and then from another machine: the same run on a disk, and the
    killed one again; beside them, since it mostly waits, one on a storage that fails now and then."""
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
        told = finish(start(ONE_MACHINE, [[words(world), place] for place in places], folder / "second"))
        told += finish(fails)
    return {"disk": folder / "disk", "before": before, "faults": bad.faults, "told": told}


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


def test_a_storage_that_goes_away_ends_the_run_with_what_to_do(store, gone):
    _, told = gone.communicate(timeout=300)
    assert gone.returncode == 1
    assert "run the same command again" in " ".join(told.split())
    assert "Traceback" not in told
    assert not store.names("gone/attribution")
    assert "features/pool/checkpoint-1/manifest.json" in store.names("gone")
