"""influray's scores and its peers', judged by one set of retrainings: the linear datamodelling score, side by side.

    influray validate RUN/config.yaml --experiment lds      # the retrainings, once
    python jobs/benchmark_fidelity.py RUN --work WORK [--peers bergson dattri-llm] [--set scorers=[..]] [--json FILE]

Peers score the rows of the run's own catalogue at the run's own checkpoints, each in an environment of its own, which
is made in WORK where it is not there (jobs/peers/*_scores.py; pip needs an index). What they made is kept in WORK. CPU
seconds are those of a peer's scores, from model and tokens to the matrix. Intervals are 95 % bootstrap intervals over
the subsets, the same samples for all; `less` is the difference to the run's own scorer.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influray.config import load_config, parse_override
from influray.data.catalogue import Catalogue
from influray.evaluation.lds import lds, predicted_effects
from influray.evaluation.rank_correlation import percentile_interval
from influray.model.checkpoints import MOMENTS_FILE, load_checkpoint
from influray.progress import open_progress
from influray.steps.context import StepContext
from influray.store.artifact import read_json, read_sealed, write_json
from influray.store.run_directory import RunDirectory
from influray.validation.experiments import read_result
from influray.validation.lds import subsets
from influray.validation.setting import Setting

TORCH = "torch==2.13.0"
# Packages of each environment, and those that come along, are not used, and fit no CPU build of torch.
ENVIRONMENTS = {
    "bergson": (("bergson==2.5.1", "faiss-cpu"), ("torchvision", "torchaudio")),
    "dattri-llm": (("dattri-llm[transformers]==0.1.0", "peft", "safetensors"), ()),
}
SCRIPTS = {"bergson": "bergson_scores.py", "dattri-llm": "dattri_scores.py"}


def write_world(directory: RunDirectory, folder: Path) -> None:
    """Write what a peer needs of a run: tokens, base, and the adapters with their moments and weights."""
    config = load_config(directory.config_path)
    tokens, rows = {}, {}
    for split in ("pool", "target"):
        catalogue = Catalogue(directory.data(split))
        examples = catalogue.tokenized(0, len(catalogue))
        rows[split] = len(examples)
        tokens[f"{split}_length"] = np.array([one.tokens for one in examples])
        tokens[f"{split}_ids"] = np.concatenate([one.input_ids_S for one in examples])
        tokens[f"{split}_mask"] = np.concatenate([one.loss_mask_S for one in examples])
    found = []
    count = read_json(directory.warmup / "manifest.json")["checkpoints"]
    for number in range(1, count + 1):
        checkpoint = load_checkpoint(directory.checkpoint(number))
        found.append(
            {
                "adapter": str(checkpoint.adapter),
                "moments": str(checkpoint.folder / MOMENTS_FILE),
                "weight": checkpoint.mean_learning_rate,
            }
        )
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / "tokens.npz", **tokens)
    write_json(folder / "world.json", {"base": config.model.base, "rows": rows, "checkpoints": found})


def environment(name: str, work: Path) -> Path:
    """Return the Python of a peer's environment, made where it is not there."""
    folder = work / f"env-{name}"
    python, ready = folder / "bin" / "python", folder / "ready"
    if not ready.exists():
        packages, unwanted = ENVIRONMENTS[name]
        pip = [str(python), "-m", "pip", "--quiet"]
        subprocess.run([sys.executable, "-m", "venv", "--clear", str(folder)], check=True)
        subprocess.run([*pip, "install", TORCH], check=True)  # by itself: a resolver may take a build of several GB
        subprocess.run([*pip, "install", TORCH, *packages], check=True)
        if unwanted:
            subprocess.run([*pip, "uninstall", "--yes", *unwanted], check=True)
        ready.touch()
    return python


def peer_scores(name: str, work: Path) -> dict[str, tuple[np.ndarray, float]]:
    """Return method -> (scores [N, T], CPU seconds) of a peer."""
    out = work / name
    if not (out / "seconds.json").exists():
        out.mkdir(exist_ok=True)
        script = Path(__file__).parent / "peers" / SCRIPTS[name]
        command = [str(environment(name, work)), str(script), str(work / "world"), str(out)]
        single = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        subprocess.run(command, check=True, env={**os.environ, **single})
    seconds = json.loads((out / "seconds.json").read_text())
    return {method: (np.load(out / f"{method}.npy", allow_pickle=False), taken) for method, taken in seconds.items()}


def judged(
    setting: Setting, retrainings: Sequence[str], peers: dict[str, dict[str, tuple[np.ndarray, float]]]
) -> list[dict[str, Any]]:
    """Return a line for each scorer of the run and of the peers, on targets; `retrainings` are those of the result."""
    drawn = subsets(setting)
    folder = setting.context.directory.validation / "retrainings"
    losses = np.array([read_sealed(folder / f"{one}.json")["losses"]["target"] for one in retrainings])
    effect_MT = -losses.reshape(len(drawn), len(setting.config.seeds), -1).mean(axis=1)
    member_MN = setting.member(drawn, setting.candidates)
    lines, own = [], None

    def add(name: str, blocks: Any, seconds: float | None) -> None:
        nonlocal own
        predicted_MT = predicted_effects(blocks, member_MN, len(setting.tasks))
        found = lds(predicted_MT, effect_MT, setting.tasks, setting.config.seed)
        own = own or found
        less = list(percentile_interval(found.samples - own.samples))
        difference = {"value": found.mean - own.mean, "interval": less}
        line = {"name": name, "lds": found.mean, "interval": list(found.interval), "less_own": difference}
        lines.append({**line, "seconds": seconds})

    for one in setting.scorers:
        add(f"influray {one.name}", setting.blocks(one, setting.candidates), None)
    for peer, methods in peers.items():
        for method, (score_NT, seconds) in methods.items():
            place = np.arange(len(setting.candidates))
            add(f"{peer} {method}", [(place, score_NT[setting.candidates].astype(np.float64))], seconds)
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--peers", nargs="*", default=list(SCRIPTS), choices=list(SCRIPTS))
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="of `validate`: scorers=[..]")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    directory = RunDirectory(given.run)
    made = read_result(directory, "lds")
    if made is None:
        raise SystemExit(f"{given.run}: no lds there; run `influray validate {given.run}/config.yaml` first")
    write_world(directory, given.work / "world")
    peers = {name: peer_scores(name, given.work) for name in given.peers}
    drawn = {"seeds": made["tuning_seeds"], "seed": made["seed"]}
    drawn |= {f"lds.{key}": made[key] for key in ("subsets", "share")}
    drawn |= dict(map(parse_override, given.set))
    config = load_config(directory.config_path, {f"validate.{key}": value for key, value in drawn.items()})
    with contextlib.ExitStack() as stack:
        progress = stack.enter_context(open_progress(directory.logs))
        lines = judged(
            Setting(StepContext(config, directory, "validate", progress, stack, None)), made["retrainings"], peers
        )
    for one in sorted(lines, key=lambda one: -one["lds"]):
        low, high = one["interval"]
        value, (least, most) = one["less_own"]["value"], one["less_own"]["interval"]
        taken = "" if one["seconds"] is None else f"{one['seconds']:8.0f} CPU s"
        found = f"{one['lds']:6.3f} [{low:.3f}, {high:.3f}]  {value:+.3f} [{least:+.3f}, {most:+.3f}]"
        print(f"{one['name']:32} {found}{taken}")
    if given.json:
        write_json(given.json, {"run": str(given.run), "scorers": lines})


if __name__ == "__main__":
    main()
