"""The selection driver: each job once, through kills, and it can be asked while it works."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np
import pytest
import ray

from influray.data.catalogue import Catalogue
from influray.protocols import DataError
from influray.runtime.cluster import NAMESPACE
from influray.runtime.columns import ColumnWorkers
from influray.runtime.selection import MAX_RESTARTS, SelectionError, SelectionJob, driver_name, run_selection
from influray.store import ranges
from influray.store.artifact import ShardStore
from influray.store.attribution import Attribution, attribution_table, commit_attribution
from influray.store.ranges import Threads, map_ranges
from influray.store.run_directory import RunDirectory
from tests.integration import selection_jobs
from tests.unit.synthetic_run import build_run

pytestmark = [pytest.mark.ray, pytest.mark.endurance, pytest.mark.usefixtures("ray_cluster")]

JOBS = "tests.integration.selection_jobs"


def job(function: str, folder: Path, name: str, **more: float) -> SelectionJob:
    return SelectionJob(name, f"{JOBS}:{function}", {"folder": str(folder), "name": name, **more})


def test_a_killed_driver_goes_on_with_the_job_it_was_at(tmp_path):
    jobs = [job("write", tmp_path, "first"), job("die_once", tmp_path, "second"), job("write", tmp_path, "third")]
    results = run_selection(tmp_path, jobs, cpus=0.1)
    assert results == {name: {"name": name} for name in ("first", "second", "third")}
    workers = {name: (tmp_path / name).read_text().split() for name in results}
    assert [len(found) for found in workers.values()] == [1, 1, 1], "a job was carried out twice"
    assert workers["first"] != workers["second"], "the driver was not killed"
    assert workers["second"] == workers["third"]


def test_the_driver_answers_while_it_runs_and_has_a_name(tmp_path):
    heard = []

    def on_status(status):
        heard.append(status)
        ray.get_actor(driver_name(tmp_path), namespace=NAMESPACE)

    run_selection(
        tmp_path, [job("write", tmp_path, "a"), job("write", tmp_path, "b", seconds=4.0)], on_status, cpus=0.1
    )
    assert (heard[-1].running, heard[-1].done) == ("b", ("a",))
    assert 0 < heard[-1].seconds < 60
    with pytest.raises(ValueError, match="Failed to look up actor"):
        ray.get_actor(driver_name(tmp_path), namespace=NAMESPACE)


def test_an_error_of_the_user_arrives_unchanged(tmp_path):
    with pytest.raises(DataError) as caught:
        run_selection(tmp_path, [SelectionJob("bids", f"{JOBS}:refuse")], cpus=0.1)
    assert type(caught.value) is DataError
    assert str(caught.value) == "attribution: the matrix has no rows"


def test_a_job_that_always_kills_the_driver_ends_the_run(tmp_path):
    with pytest.raises(SelectionError, match=f"more than {MAX_RESTARTS} times"):
        run_selection(tmp_path, [SelectionJob("bad", f"{JOBS}:die", {"folder": str(tmp_path)})], cpus=0.1)
    assert (tmp_path / "deaths").read_text() == "x" * (1 + MAX_RESTARTS)


ROWS, COLUMNS = 2100, 12
SELECTOR = {"name": "even", "method": "bids", "budget": 400, "seed": 0, "options": {}, "constraints": {}}


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> RunDirectory:
    """A run directory with a matrix of some ranges in uneven parts."""
    run = build_run(tmp_path_factory.mktemp("run"), rows=ROWS, selections=False, evaluated=False)
    assert len(Catalogue(run.data("pool"))) == ROWS
    score_NT = np.random.default_rng(3).standard_normal((ROWS, COLUMNS)).astype(np.float32)
    store, cuts = ShardStore(run.attribution), [0, 3, 700, 1800, ROWS]
    for number, (start, stop) in enumerate(itertools.pairwise(cuts)):
        store.commit(f"{number:064x}", attribution_table(np.arange(start, stop), score_NT[start:stop]), {})
    tasks = [f"task {j // 3}" for j in range(COLUMNS)]
    ids = [f"t{j}" for j in range(COLUMNS)]
    commit_attribution(store, [f"{n:064x}" for n in range(4)], {"fingerprint": "f"}, range(COLUMNS), ids, tasks)
    return run


@pytest.fixture(scope="module")
def alone(run) -> dict[str, bytes]:
    """The files of a selection that one process made in peace, in one piece."""
    selection_jobs.selecting.select_and_write(run.path, SELECTOR, "f" * 64)
    return contents(run)


def contents(run: RunDirectory) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.selection("even").iterdir()}


@pytest.mark.parametrize(("workers", "die_at"), [(0, None), (1, 160), (2, None), (3, 160)])
def test_workers_and_kills_of_the_driver_leave_the_bytes_as_they_are(run, alone, workers, die_at):
    heard = run.path / "heard"
    heard.unlink(missing_ok=True)
    arguments = {"run_dir": str(run.path), "selector": SELECTOR, "die_at": die_at}
    jobs = [SelectionJob("even", f"{JOBS}:select", arguments, helped=True)]
    run_selection(run.path, jobs, cpus=0.1, workers=workers, cpus_per_worker=0.1)
    assert contents(run) == alone
    lives: dict[str, list[int]] = {}
    for line in heard.read_text().splitlines():
        lives.setdefault(line.split()[0], []).append(int(line.split()[1]))
    # A busy machine has lost a driver that nothing killed: what is promised are the bytes, not how often it begins.
    assert len(lives) >= (1 if die_at is None else 2)
    assert all(seen[0] == 8 for seen in lives.values()), "a selection begins again, whole"
    assert sorted(path.name for path in run.selection("even").parent.iterdir()) == ["even"], "something is left behind"


@pytest.mark.parametrize("passes", [0, 3])
def test_a_column_worker_that_is_killed_within_a_selection_leaves_the_bytes_as_they_are(run, alone, passes):
    """In the first pass, which takes the moments of the columns, and in one that looks for candidates."""
    heard, killed = run.path / "heard", run.path / "killed"
    for path in (heard, killed):
        path.unlink(missing_ok=True)
    arguments = {"run_dir": str(run.path), "selector": SELECTOR, "passes": passes}
    jobs = [SelectionJob("even", f"{JOBS}:select_without_a_worker", arguments, helped=True)]
    run_selection(run.path, jobs, cpus=0.1, workers=2, cpus_per_worker=0.1)
    assert contents(run) == alone
    drivers = {line.split()[0] for line in heard.read_text().splitlines()}
    assert killed.read_text() not in {"", *drivers}, "no worker was killed"


def test_a_worker_that_is_killed_is_replaced_and_its_ranges_are_read_again(run, tmp_path, monkeypatch):
    monkeypatch.setattr(ranges, "RANGE_ROWS", 256)
    expected = [found[:2] for found in map_ranges(Attribution(run.attribution, Threads(1)), selection_jobs.total)]
    for count in (1, 3):
        mark = tmp_path / f"mark-{count}"
        workers = ColumnWorkers(count, 0.1, str(tmp_path / "logs"))
        source = Attribution(run.attribution, workers)
        found = list(map_ranges(source, selection_jobs.total, str(mark)))
        assert [each[:2] for each in found] == expected
        # Who was killed wrote its name there, at a range from 512 on.
        assert int(mark.read_text()) not in {who for start, _, who in found if start >= 512}
        with pytest.raises(DataError, match="row 0 is bad"):
            list(map_ranges(source, selection_jobs.refuse_range))


def test_without_room_for_workers_the_driver_reads_itself(run, tmp_path, monkeypatch):
    monkeypatch.setattr("influray.runtime.plain_tasks.START_SECONDS", 0.0)
    workers = ColumnWorkers(2, 1000.0, str(tmp_path / "logs"))
    found = list(map_ranges(Attribution(run.attribution, workers), selection_jobs.total))
    assert len(found) == 1
