"""The selection driver: each job once, through kills, and it can be asked while it works."""

from __future__ import annotations

from pathlib import Path

import pytest
import ray

from influray.protocols import DataError
from influray.runtime.cluster import NAMESPACE
from influray.runtime.selection import MAX_RESTARTS, SelectionError, SelectionJob, driver_name, run_selection

pytestmark = [pytest.mark.ray, pytest.mark.usefixtures("ray_cluster")]

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
    assert list((tmp_path / "selection").iterdir()) == [], "marks are left behind"


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
