"""A run on object storage is asked by machines that share no disk: what they find is what is found on a disk.

The run is made on a disk and copied to the bucket; a machine is a cache folder of its own in this process.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from influray.ask.explain import Explainer
from influray.ask.index import PoolIndex, Shard, build_shard
from influray.ask.index_build import build_index
from influray.cli.app import app
from influray.report.audit import audit, read_audit
from influray.report.explorer.data import chosen_rows
from influray.runs import Run, open_run
from influray.store.mirror import address_of, local
from influray.store.run_directory import RunDirectory
from influray.store.sealed import sealed
from influray.store.vectors import PoolVectors, target_vectors
from tests.object_store import Store
from tests.unit.asked_run import build_asked_run

SHARD_BYTES = 4 * 128 * 10  # three shards of the 29 rows


@pytest.fixture(scope="module")
def disk(tmp_path_factory) -> Run:
    return build_asked_run(tmp_path_factory.mktemp("asked"))


@pytest.fixture(scope="module")
def address(store, disk) -> str:
    """The run without an index, in the bucket; no test writes to it but its logs and audit."""
    return copied(store, disk, "asked")


@pytest.fixture
def machine(tmp_path, monkeypatch) -> Callable[[str], Path]:
    """Go on as the machine of a name; return its cache folder."""

    def become(name: str) -> Path:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / name))
        return tmp_path / name

    become("first")
    return become


def copied(store: Store, run: Run, folder: str) -> str:
    for path in run.directory.path.rglob("*"):
        if path.is_file() and path.name != "lease.json":
            store.write(f"{folder}/{path.relative_to(run.directory.path).as_posix()}", path.read_bytes())
    return store.uri(folder)


def command(*arguments: str) -> str:
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


def answer(found: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in found.items() if name != "seconds"}


def test_questions_are_answered_from_the_storage(address, disk, machine):
    text = ("What is 7+8?", "--answer", "15", "--tokens", "-k", "29")
    for asked in (("--like", "t-sum-50", "-k", "29"), text):
        machine(asked[0])
        places = (address, str(disk.directory.path))
        found, wanted = (json.loads(command("query", place, *asked, "--json", "-")) for place in places)
        assert answer(found) == answer(wanted)


def test_an_index_is_built_by_two_machines_asked_by_a_third_and_replaced_by_a_fourth(store, disk, machine, tmp_path):
    place = copied(store, disk, "indexed")
    here = open_run(shutil.copytree(disk.directory.path, tmp_path / "here"))

    def build(trained: Path, shards: list[Shard]) -> list[Shard]:
        names, made = address_of(trained), []
        for i, shard in enumerate(shards):
            machine(f"builder-{i % 2}")
            own = RunDirectory(place)
            made.append(build_shard(PoolVectors(own), own.index, local(names), shard))
        machine("first")
        return made

    made, _ = build_index(RunDirectory(place), "SQ8", shard_bytes=SHARD_BYTES, builder=build)
    wanted, _ = build_index(here.directory, "SQ8", shard_bytes=SHARD_BYTES)
    files = [shard["file"] for shard in wanted["parts"]]
    assert len(files) == 3
    assert made == wanted
    assert store.names("indexed/index") == {"manifest.json", "moments.arrow", *files}
    assert all(store.read(f"indexed/index/{name}") == (here.directory.index / name).read_bytes() for name in files)

    cache = machine("third")
    run, query_QF = open_run(place), target_vectors(disk.directory)[1]
    PoolIndex(run.directory, candidates=lambda *_: (np.zeros((1, 1), np.int64), np.zeros((1, 1), np.float32)))
    assert not list(cache.rglob("*.faiss")), "who leaves the search to others fetches no shard"
    found, expected = (PoolIndex(one).search(query_QF, 10) for one in (run.directory, here.directory))
    assert found.helpful_rows.tolist() == expected.helpful_rows.tolist()
    assert found.helpful_scores.tobytes() == expected.helpful_scores.tobytes()
    answers = [answer(one.query("What is 7+8?", "15", k=29).as_plain()) for one in (run, here)]
    assert answers[0] == answers[1]

    machine("fourth")
    for _ in range(2):
        assert "index: flat (asked for), exact" in command("index", place, "--kind", "flat")
    names = store.names("indexed/index")
    assert {Path(name).suffix for name in names} == {".json", ".arrow", ".npy"}, "the files of the former are gone"
    assert json.loads(store.read("indexed/run.json"))["steps"]["index"]["kind"] == "flat"
    machine("third")
    assert PoolIndex(run.directory).search(query_QF, 10).exact, "a mirror of the former index follows"


def test_an_index_whose_file_went_from_the_storage_is_refused_and_built_again(store, disk, machine):
    place = copied(store, disk, "torn")
    manifest, _ = build_index(RunDirectory(place), "flat")
    name = manifest["parts"][0]["file"]
    store.content.delete_file(f"bucket/torn/index/{name}")
    for one in ("first", "second"):  # with a copy of it, and without
        machine(one)
        result = CliRunner().invoke(app, ["query", place, "--like", "t-sum-50"])
        assert f"{address_of(local(place) / 'index' / name)}: not there or not whole; " in str(result.exception)
        assert "delete" not in str(result.exception), "there is nothing to delete, or a copy alone"
        assert "`influray index` makes it again" in str(result.exception)
    assert not build_index(RunDirectory(place), "flat")[1]
    assert PoolIndex(RunDirectory(place)).search(target_vectors(disk.directory)[1], 3).exact


def test_an_audit_lies_on_the_storage_and_says_what_that_of_a_disk_says(store, address, disk, machine):
    command("audit", address)
    wanted = json.loads(json.dumps(audit(disk.directory.path)))
    assert json.loads(store.read("asked/report/audit.json")) == sealed(wanted)
    assert wanted["mislabelled"]
    machine("second")
    assert read_audit(RunDirectory(address)) == wanted


def test_rows_are_explained_and_searched_from_the_storage(address, disk, machine):
    wanted = Explainer(disk.directory, disk.config).explain("sum-3")
    assert wanted["neighbours"]
    run = open_run(address)
    assert Explainer(run.directory, run.config).explain("sum-3") == wanted
    machine("second")
    here, there = disk.directory.path, RunDirectory(address).path
    found = [chosen_rows(there, "bids", text="SUM") for _ in range(2)]  # the first one makes what is looked through
    assert found[0] == found[1] == chosen_rows(here, "bids", text="SUM")
