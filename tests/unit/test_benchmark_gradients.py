"""The benchmark of gradients runs on a folder and a pool, and needs neither Ray nor faiss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from tests.tiny import pool_rows, write_jsonl, write_tiny_model

JOB = Path(__file__).parents[2] / "jobs" / "benchmark_gradients.py"
RUN = """
import runpy, sys
sys.argv[0] = {job!r}
runpy.run_path({job!r}, run_name="__main__")
print("imported:", sorted({{"ray", "faiss"}} & set(sys.modules)))
"""


def test_the_benchmark_compares_all_contestants_and_imports_neither_ray_nor_faiss(tmp_path):
    folder = write_tiny_model(tmp_path / "model")
    pool = write_jsonl(tmp_path / "pool.jsonl", pool_rows())
    options = ["--data", str(pool), "--against", "lora_step,full_step,loop", "--rank", "2", "--dimension", "64"]
    small = ["--rounds", "1", "--rows", "6", "--loop-rows", "2", "--packing"]
    done = subprocess.run(
        [sys.executable, "-c", RUN.format(job=str(JOB)), str(folder), *options, *small],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(JOB.parents[1])},
    )
    assert done.returncode == 0, done.stderr
    assert "imported: []" in done.stdout
    lines = [line.split() for line in done.stdout.splitlines()]
    named = {words[0]: words[1:] for words in lines if words}
    for contestant in ("ours", "padded", "lora_step", "full_step", "loop"):
        assert float(named[contestant][0].replace(",", "")) > 0
    for stage in ("forward", "head", "backward", "products", "direction", "projection", "writing"):
        assert float(named[stage][0]) >= 0
    assert float(named["forward"][2]) > 0, "no operations were counted"
