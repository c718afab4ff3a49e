"""The check of a GPU, as far as it goes without one: its parts run, and what fails is told and costs the exit status."""

from __future__ import annotations

import json
import subprocess
import sys

from jobs import device_check


def test_the_parts_run_at_a_tiny_size_and_leave_their_figures(tmp_path):
    out = tmp_path / "device.json"
    job = [sys.executable, str(device_check.ROOT / "jobs" / "device_check.py")]
    done = subprocess.run([*job, "--cpu", "--out", str(out)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(out.read_text())
    assert found["parts"]["tests"]["skipped"] > 10
    figures = found["parts"]["llama-5m"]
    assert 0 < figures["of_matrix_peak"] < 1
    assert figures["ours_over"]["lora_step"] > 0
    assert "| llama-5m |" in done.stdout


def test_a_goal_that_is_missed_and_a_part_that_fails_are_told(monkeypatch):
    reached = {"tokens_per_second": {"ours": 10.0}, "peak_gib": {"ours": 1.0}, "goal": 0.45}
    one = {**reached, "of_matrix_peak": 0.4, "ours_over": {"lora_step": 1.2}}
    text = device_check.table({"big": {**one, "goals": {"of_matrix_peak": False, "lora_step": False}}})
    assert text.count("missed") == 2
    status, printed = device_check.ran([sys.executable, "-c", "print('so far', flush=True); raise SystemExit(3)"], 60)
    assert (status, printed) == (3, "so far\n")
    monkeypatch.setattr(device_check, "TESTS", ("tests/nowhere",))
    failed = device_check.tests(60)
    assert not failed["ok"]
    assert "nowhere" in failed["printed"]


def test_what_takes_too_long_is_ended():
    endless = [sys.executable, "-c", "print('begun', flush=True)\nwhile True: pass"]
    status, printed = device_check.ran(endless, 5)
    assert status is None
    assert printed == "begun\n"
