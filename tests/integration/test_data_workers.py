"""The data step by Ray workers: the bytes of the driver's own, however many there are and whatever befalls them."""

from __future__ import annotations

import collections
import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

import influray
from influray.config import ResourcesConfig, parse_config
from influray.data import costs
from influray.data.catalogue import build_catalogue
from influray.data.chat import split_encoder
from influray.data.costs import DataRates
from influray.data.files import DataFile, resolve_files
from influray.data.jobs import DRAFTS, DraftJob, Unfit
from influray.data.parts import PartsBuilder
from influray.data.readers import read_rows
from influray.model.loading import load_tokenizer
from influray.protocols import DataError
from influray.runtime.cluster import ClusterInfo, ResolvedResources, one_core_each, resolve_resources
from influray.runtime.drafting import DataCrew
from influray.runtime.tasks import PoolEvent
from influray.store.artifact import ShardStore
from influray.store.run_directory import RunDirectory
from tests.integration.test_pipeline import tree
from tests.tiny import pool_rows, target_rows, write_jsonl, write_tiny_model

pytestmark = [pytest.mark.ray, pytest.mark.endurance]

REPOSITORY = Path(__file__).parents[2]
SPLITS = ("pool", "target")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("world")
    write_tiny_model(folder / "model")
    rows = pool_rows(400)
    for row in rows[::5]:
        del row["id"]
    rows[300]["id"] = rows[1]["id"]
    write_jsonl(folder / "pool" / "a.jsonl", rows)
    text = (folder / "pool" / "a.jsonl").read_bytes().replace(b'"id": "', b'"id": "z-')
    (folder / "pool" / "b.jsonl.gz").write_bytes(gzip.compress(text + b"not json\n"))
    for task in ("sums", "reversals"):
        write_jsonl(folder / "targets" / f"{task}.jsonl", target_rows(task))
    return folder


@pytest.fixture
def at_once(monkeypatch):
    """Workers pay off for any pool, and a file is many jobs."""
    monkeypatch.setattr(costs, "DataRates", lambda: DataRates(startup=0.0))
    monkeypatch.setattr("influray.data.parts.DRAFT_BYTES", 4096)  # of spans: workers are told where they are


def config(world: Path, run: Path, workers: int = 2, **changes: Any) -> dict[str, Any]:
    made = tree(world, run)
    made["data"] = {**made["data"], **changes}
    return {**made, "resources": {"workers": workers, "cpus_per_worker": 0.5}}


def facts(run: Path) -> Any:
    found = {}
    for split in SPLITS:
        assert not (run / "data" / split / DRAFTS).exists()
        manifest = json.loads((run / "data" / split / "manifest.json").read_bytes())
        found[split] = manifest["digest"], manifest["files"], [part["sha256"] for part in manifest["parts"]]
    return found, (run / "quarantine.jsonl").read_bytes()


@pytest.fixture(scope="module")
def expected(world, tmp_path_factory) -> Any:
    run = tmp_path_factory.mktemp("alone")
    influray.run(config(world, run), until="data")
    assert not list(run.glob("logs/worker-*")), "workers started for a small pool"
    return facts(run)


def test_a_catalogue_by_workers_has_the_bytes_of_the_drivers(world, ray_cluster, at_once, tmp_path, expected):
    influray.run(config(world, tmp_path), until="data")
    log = "".join(path.read_text() for path in tmp_path.glob("logs/worker-*"))
    assert "a.jsonl, from line 1" in log
    assert "b.jsonl.gz, part 2 of 2" in log
    assert "pool rows from 0 on" in log
    assert facts(tmp_path) == expected


def test_a_worker_that_dies_is_replaced(world, ray_cluster, at_once, tmp_path, expected):
    plain = parse_config(config(world, tmp_path))
    directory = RunDirectory(tmp_path)
    lost: list[str] = []

    def hear(event: PoolEvent) -> None:
        if event.kind == "started" and not lost:
            os.kill(int(event.text.split()[1].rsplit("-", 1)[1]), signal.SIGKILL)
        if event.kind == "lost":
            lost.append(event.text)

    crew = DataCrew(
        plain.model_dump(mode="json"), directory.address, ResolvedResources(1, 0.5, 0.0, 1, 1, 3), on_event=hear
    )
    try:
        catalogue = build_catalogue(
            directory.data("pool"),
            "pool",
            [("", file) for file in resolve_files(plain.data.pool, plain.data.root, "data.pool")],
            split_encoder(plain, load_tokenizer(plain.model), "pool"),
            "key",
            plain.data,
            quarantine=directory.quarantine_path,
            find_crew=lambda seconds: crew,
        )
    finally:
        crew.close()
    assert len(lost) == 1
    assert catalogue.digest == expected[0]["pool"][0]


DRIVER = """
import json, sys
import influray, influray.data.parts
from influray.data import costs

costs.DataRates = lambda rates=costs.DataRates: rates(startup=0.0)
influray.data.parts.DRAFT_BYTES = 4096
influray.run(json.loads(sys.argv[1]), until="data")
"""


def test_after_the_drivers_death_another_goes_on_from_its_drafts(
    world, ray_cluster, at_once, tmp_path, expected, monkeypatch
):
    command = [sys.executable, "-c", DRIVER, json.dumps(config(world, tmp_path, workers=2))]
    process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(REPOSITORY)}, start_new_session=True)
    store = ShardStore(tmp_path / "data" / "pool" / DRAFTS)
    deadline = time.monotonic() + 400
    while len(before := list((store.folder / "_receipts").glob("*.json"))) < 6:
        assert process.poll() is None, "it ended before it could be killed"
        assert time.monotonic() < deadline
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    made = {path.name: path.stat().st_mtime_ns for path in before}
    kept: dict[str, int] = {}
    number = PartsBuilder._part_jobs

    def look(*arguments: Any) -> Any:  # at what is there once all is drafted
        kept.update({p.name: p.stat().st_mtime_ns for p in (store.folder / "_receipts").glob("*.json")})
        return number(*arguments)

    monkeypatch.setattr(PartsBuilder, "_part_jobs", look)
    influray.run(config(world, tmp_path), until="data")
    assert len(kept) > len(made)
    assert {name: kept[name] for name in made} == made
    assert facts(tmp_path) == expected


def test_a_fault_that_workers_find_is_the_users_and_names_the_first_place(world, ray_cluster, at_once, tmp_path):
    # How large these files are shows where they are decompressed, and that is at the workers.
    text = (world / "pool" / "a.jsonl").read_bytes()
    (tmp_path / "pool").mkdir()
    for name, times in (("a", 40), ("b", 20)):
        (tmp_path / "pool" / f"{name}.jsonl.gz").write_bytes(gzip.compress(text * times))
    made = config(world, tmp_path / "run", pool=str(tmp_path / "pool"), max_file_bytes=10 * len(text))
    plain = parse_config(made).data
    first = resolve_files(plain.pool, plain.root, "data.pool")[0]
    with pytest.raises(DataError, match=r"pool/a\.jsonl\.gz:\d{2,}: more than data\.max_file_bytes") as alone:
        collections.deque(read_rows(first, plain.max_line_bytes, plain.max_file_bytes), 0)
    with pytest.raises(DataError) as caught:
        influray.run(made, until="data")
    assert str(caught.value) == str(alone.value)
    log = "".join(path.read_text() for path in (tmp_path / "run").glob("logs/worker-*"))
    assert "a.jsonl.gz, part 1 of" in log


def test_a_worker_without_the_model_is_unfit(world, ray_cluster, tmp_path):
    made = config(world, tmp_path / "run")
    elsewhere = parse_config({**made, "model": {**made["model"], "base": str(tmp_path / "absent")}})
    crew = DataCrew(elsewhere.model_dump(mode="json"), str(tmp_path / "run"), ResolvedResources(1, 0.5, 0, 1, 1, 3))
    try:
        with pytest.raises(Unfit, match="absent"):
            crew([DraftJob("pool", 0, DataFile("a", "a", "jsonl"), 1, "a", "", "d", None)])
    finally:
        crew.close()


@pytest.mark.parametrize(
    ("asked", "owned", "workers", "each"),
    [
        ({"workers": 8, "cpus_per_worker": 4}, False, 32, 1.0),
        ({"workers": 2, "cpus_per_worker": 0.5}, True, 2, 0.5),
        ({"workers": "auto", "cpus_per_worker": 16}, True, 64, 1.0),
        ({"workers": "auto", "cpus_per_worker": 16}, False, 64, 1.0),
    ],
)
def test_data_workers_take_a_core_each_of_what_the_run_may_use(asked, owned, workers, each):
    cluster = ClusterInfo(cpus=64, gpus=0, nodes=1, address="", owned=owned)
    resources = ResourcesConfig(**asked)
    found = one_core_each(resources, resolve_resources(resources, cluster), cluster)
    assert (found.workers, found.cpus_per_worker, found.gpus_per_worker) == (workers, each, 0.0)
    assert found.follows == (asked["workers"] == "auto" and not owned)
