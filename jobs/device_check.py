"""All that is to be seen on a GPU, in one command: python jobs/device_check.py [--out device.json] [--minutes 8]

No Ray and no network: torch, transformers, peft, accelerate, pyarrow, pydantic, pyyaml, zstandard, safetensors, jinja2,
networkx, threadpoolctl, typer, rich, pytest and numpy are enough, and faiss' GPU build where its index is to be tried.
Every part runs in a process of its own, so that one that fails costs the others nothing; what there is so far is
written after each, so that a machine that is taken away leaves its figures. Parts that no time is left for are named.

  tests     the tests marked `gpu`: gradients, projections, packing, pinned copies, faiss; and the kernel's, compiled
  160m ..   jobs/benchmark_gradients.py at three shapes, beside a LoRA step and, at the smaller ones, LESS' loop

Goals: the share of the measured matrix peak (45 % at 8B, 35 % at 1B, 15 % at 160M), and at most 1.05 of the time of a
LoRA step. The exit status is 1 where a test fails or a part ends in an error; goals that are missed are printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
LORA_STEP = 1.05  # the most that a row may take of a LoRA step
TESTS = ("tests/gpu", "tests/unit/test_fused_step.py")


@dataclass(frozen=True)
class Shape:
    """A part of the benchmark: its options, and the share of the matrix peak that it should reach."""

    name: str
    options: tuple[str, ...]
    goal: float


ON_A_GPU = (
    Shape("llama-160m", ("--against", "lora_step,loop", "--rounds", "3", "--rows", "1024"), 0.15),
    Shape("llama-1b", ("--against", "lora_step,loop", "--rounds", "3"), 0.35),
    Shape("llama-3-8b", ("--against", "lora_step", "--rounds", "3", "--rows", "256"), 0.45),
)
# Nobody holds a CPU to goals of a GPU: that the parts run is what is seen.
ON_A_CPU = (
    Shape("llama-5m", ("--rank", "2", "--dimension", "64", "--rounds", "1", "--rows", "8", "--loop-rows", "2"), 0.0),
)


def machine() -> dict[str, Any]:
    """Return what this is measured on."""
    import torch

    found: dict[str, Any] = {"date": time.strftime("%Y-%m-%d"), "python": platform.python_version()}
    found |= {"torch": torch.__version__, "cuda": torch.version.cuda, "gpus": torch.cuda.device_count()}
    if torch.cuda.is_available():
        facts = torch.cuda.get_device_properties(0)
        found |= {"gpu": facts.name, "gib": round(facts.total_memory / 2**30, 1)}
    return found


def ran(command: list[str], seconds: float) -> tuple[int | None, str]:
    """Run a command from the root; return its exit status (None: out of time) and what it printed."""
    paths = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": paths, "PYTHONUNBUFFERED": "1"}
    with tempfile.TemporaryFile("w+") as output:
        try:
            done = subprocess.run(
                command,
                cwd=ROOT,
                stdout=output,
                stderr=subprocess.STDOUT,
                env=environment,
                timeout=seconds,
                check=False,
            )
            status: int | None = done.returncode
        except subprocess.TimeoutExpired:
            status = None
        output.seek(0)
        return status, output.read()


def tests(seconds: float) -> dict[str, Any]:
    """Run the tests; return their counts and, of what failed, the end of what was printed."""
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *TESTS]
    status, printed = ran(command, seconds)
    counts = {what: int(n) for n, what in re.findall(r"(\d+) (passed|failed|skipped|errors?)\b", printed)}
    # 5: nothing was collected, as where triton is not there.
    return {"ok": status == 0, "status": status, **counts, "printed": "" if status == 0 else printed[-6000:]}


def measured(shape: Shape, seconds: float) -> dict[str, Any]:
    """Run the benchmark of a shape; return its figures and which goals they meet."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "figures.json"
        command = [sys.executable, "jobs/benchmark_gradients.py", shape.name, *shape.options, "--out", str(out)]
        status, printed = ran(command, seconds)
        print(printed if status == 0 else printed[-3000:], flush=True)
        if status != 0:
            return {"ok": False, "status": status, "printed": printed[-6000:]}
        found = json.loads(out.read_text())
    goals = {
        "of_matrix_peak": found["of_matrix_peak"] >= shape.goal,
        "lora_step": found["ours_over"]["lora_step"] <= LORA_STEP,
    }
    return {"ok": True, "goal": shape.goal, "goals": goals, **found}


def table(found: dict[str, Any]) -> str:
    """Return the figures of all shapes as Markdown, for the docs."""
    lines = [
        "| shape | tokens/s | of the matrix peak | goal | of a LoRA step | goal | peak GiB |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, one in found.items():
        if "of_matrix_peak" in one:
            share, step = one["of_matrix_peak"], one["ours_over"]["lora_step"]
            met = {key: "met" if value else "missed" for key, value in one["goals"].items()}
            peak = one["peak_gib"].get("ours", float("nan"))
            lines.append(
                f"| {name} | {one['tokens_per_second']['ours']:,.0f} | {share:.0%} | {one['goal']:.0%}: "
                f"{met['of_matrix_peak']} | {step:.2f} | {LORA_STEP}: {met['lora_step']} | {peak:.2f} |"
            )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("device.json"))
    parser.add_argument("--minutes", type=float, default=8.0, help="for all of it")
    parser.add_argument("--cpu", action="store_true", help="the parts at a tiny size, to see that they run")
    arguments = parser.parse_args()
    until = time.monotonic() + 60 * arguments.minutes
    found: dict[str, Any] = {"machine": machine(), "parts": {}}
    if not found["machine"]["gpus"] and not arguments.cpu:
        sys.exit("no GPU here that torch sees; --cpu tries the parts at a tiny size")
    shapes = ON_A_CPU if arguments.cpu else ON_A_GPU
    parts = {"tests": tests, **{shape.name: lambda left, shape=shape: measured(shape, left) for shape in shapes}}
    print(json.dumps(found["machine"]), flush=True)
    for name, part in parts.items():
        left = until - time.monotonic()
        found["parts"][name] = part(left) if left > 5 else {"ok": False, "status": None, "printed": "no time was left"}
        one = found["parts"][name]
        arguments.out.write_text(json.dumps(found, indent=1))
        said = {key: value for key, value in one.items() if key in ("passed", "failed", "skipped", "status")}
        print(f"{name}: {'ran' if one['ok'] else 'NOT DONE'} {said or ''}", flush=True)
        if not one["ok"]:
            print(one["printed"], flush=True)
    print(table(found["parts"]))
    sys.exit(int(not all(one["ok"] for one in found["parts"].values())))


if __name__ == "__main__":
    main()
