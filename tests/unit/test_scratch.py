"""Folders of private clusters: those of killed drivers go with the next run, those of living ones stay."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

from influray.runtime.scratch import OWNER, ScratchFolder, sweep

HOLD = """
import sys; from pathlib import Path
from influray.runtime.scratch import ScratchFolder
folder = ScratchFolder(Path(sys.argv[1])); (folder.path / "session").mkdir(); print(folder.path, flush=True)
sys.stdin.read()
"""


def holder(parent: Path) -> tuple[subprocess.Popen[str], Path]:
    command = [sys.executable, "-c", HOLD, str(parent)]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    return process, Path(process.stdout.readline().strip())


def test_the_folder_of_a_killed_driver_is_swept_by_the_next_and_that_of_a_living_one_is_not(tmp_path):
    killed, left = holder(tmp_path)
    living, held = holder(tmp_path)
    try:
        killed.send_signal(signal.SIGKILL)
        killed.wait()
        assert left.is_dir()
        mine = ScratchFolder(tmp_path)
        assert not left.exists()
        assert (held / "session").is_dir()
        mine.close(keep=False)
        assert not mine.path.exists()
    finally:
        living.kill()
        living.wait()
    assert sweep(tmp_path) == [held]


def test_what_is_no_folder_of_a_driver_stays(tmp_path):
    (tmp_path / "influray-notes").mkdir()
    (tmp_path / "influray-file").write_text("mine")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    (elsewhere / OWNER).touch()
    (tmp_path / "influray-link").symlink_to(elsewhere)
    assert sweep(tmp_path) == []
    assert (elsewhere / OWNER).exists()


def test_after_an_error_rays_logs_are_kept_and_not_swept(tmp_path):
    folder = ScratchFolder(tmp_path)
    logs = folder.path / "session_2026" / "logs"
    logs.mkdir(parents=True)
    (logs / "raylet.out").write_text("why")
    folder.close(keep=True)
    assert not folder.path.exists()
    assert sweep(tmp_path) == []
    assert [path.read_text() for path in tmp_path.glob("*/raylet.out")] == ["why"]
