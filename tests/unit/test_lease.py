"""A run directory has one driver, whatever happens to its lease file or to the folder: two real processes."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from influray.protocols import ConfigError, RunStopped
from influray.store import lease
from influray.store.lease import locked
from influray.store.run_directory import RunDirectory

HOLD = """
import sys, threading
from influray.interrupts import interrupt_on_sigterm
from influray.protocols import RunStopped
from influray.store.run_directory import RunDirectory
try:
    directory = RunDirectory(sys.argv[1])
    with interrupt_on_sigterm(), directory.hold():
        directory.begin()
        print("held", flush=True)
        threading.Event().wait(60)
except RunStopped as error:
    print(error, flush=True)
    sys.exit(1)
"""


@pytest.fixture
def holder(tmp_path):
    process = subprocess.Popen([sys.executable, "-c", HOLD, str(tmp_path / "run")], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def hold_in_vain(run: Path) -> str:
    with pytest.raises(ConfigError) as refused, RunDirectory(run).hold():
        pass
    return str(refused.value)


def test_a_lease_file_that_is_removed_lets_nobody_in(holder, tmp_path):
    run = tmp_path / "run"
    told = hold_in_vain(run)
    assert f"is in use by process {holder.pid}" in told
    (run / "lease.json").unlink()
    assert "is in use by" in hold_in_vain(run)
    (run / "lease.json").write_text("{}")
    assert "is in use by another process" in hold_in_vain(run)


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
def test_a_holder_whose_folder_is_taken_away_stops_with_a_message(holder, tmp_path, how):
    run = tmp_path / "run"
    shutil.rmtree(run) if how == "removed" else run.rename(tmp_path / "elsewhere")
    if how == "replaced":
        with RunDirectory(run).hold():
            assert holder.wait(30) == 1
    assert holder.wait(30) == 1
    assert holder.stdout.read() == (
        f"run_dir: {run} was removed or replaced by another folder while this run wrote to it; this run stops, one "
        "driver at a time\n"
    )


def test_where_a_folder_cannot_be_locked_the_file_is_watched(tmp_path, monkeypatch):
    monkeypatch.setattr(lease, "_lock_folder", lambda descriptor, folder: False)  # as on NFS
    monkeypatch.setattr(lease, "LOOK_SECONDS", 0.05)
    first = RunDirectory(tmp_path)

    def taken_over() -> None:
        with first.hold():
            (tmp_path / "lease.json").unlink()
            with locked(tmp_path, "lease.json", "today"):
                holding = first._holding
                assert holding is not None
                while holding.lost is None:
                    pass
                first.record_step("data", status="done")

    with pytest.raises(RunStopped, match="was taken over by process"):
        taken_over()
    assert not (tmp_path / "run.json").exists()


def test_a_directory_is_free_once_its_driver_is_gone(holder, tmp_path):
    holder.kill()
    holder.wait()
    with RunDirectory(tmp_path / "run").hold():
        RunDirectory(tmp_path / "run").record_step("data", status="done")
