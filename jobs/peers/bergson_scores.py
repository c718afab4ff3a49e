"""bergson's scores of a run's pool rows, for jobs/benchmark_fidelity.py: run by an environment that has bergson.

    python bergson_scores.py WORLD OUT

Reads WORLD/world.json and WORLD/tokens.npz, writes OUT/NAME.npy, float32 [N, T], and OUT/seconds.json, CPU seconds.
Adapters, weights of the checkpoints and tokens are influray's own, so that methods alone are compared.
"""

# pyright: basic, reportMissingImports=false
from __future__ import annotations

import json
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from bergson.data import load_gradients, load_scores
from datasets import Dataset

BATCH_TOKENS = "512"  # at most the context of the model


def main(world: Path, out: Path) -> None:
    facts = json.loads((world / "world.json").read_text())
    checkpoints = facts["checkpoints"]
    seconds = {}
    with tempfile.TemporaryDirectory(dir=out) as folder:
        place = Path(folder)
        data = {split: save(world, split, place) for split in ("pool", "target")}
        model = ["--tokenizer", facts["base"], "--token_batch_size", BATCH_TOKENS, "--overwrite"]

        def build(split: str, adapter: str) -> np.ndarray:
            made = place / f"index-{split}"
            settings = ["--projection_dim", "0", "--loss_reduction", "mean", "--precision", "fp32"]
            bergson("build", str(made), "--model", adapter, "--dataset", data[split], *model, *settings)
            return np.array(load_gradients(made), np.float32)

        def trackstar(adapter: str) -> np.ndarray:
            made = place / "trackstar"
            settings = ["--projection_dim", "16", "--query.aggregation", "none", "--query.dataset", data["target"]]
            settings += ["--unit_normalize", "--score", "individual"]
            bergson("trackstar", str(made), "--model", adapter, "--data.dataset", data["pool"], *model, *settings)
            return matrix(made / "scores", facts)

        def ekfac(adapter: str) -> np.ndarray:
            made = place / "ekfac"
            settings = ["--method", "kfac", "--hessian_cfg.ev_correction", "--use_dataset_labels"]
            settings += ["--query.aggregation", "none", "--query.dataset", data["target"], "--score", "individual"]
            bergson("ekfac", str(made), "--model", adapter, "--data.dataset", data["pool"], *model, *settings)
            return matrix(made / "scores", facts)

        def keep(name: str, scores: np.ndarray, before: float) -> None:
            np.save(out / f"{name}.npy", scores.astype(np.float32))
            seconds[name] = children() - before
            print(f"bergson {name}: {seconds[name]:.0f} CPU s", flush=True)

        before = children()
        dots, cosines = np.zeros((2, facts["rows"]["pool"], facts["rows"]["target"]))
        for one in checkpoints:
            pool, target = build("pool", one["adapter"]), build("target", one["adapter"])
            dots += one["weight"] * (pool @ target.T)
            norms = np.linalg.norm(pool, axis=1)[:, None] * np.linalg.norm(target, axis=1)
            cosines += one["weight"] * (pool @ target.T) / norms
        keep("tracin", dots, before)
        keep("gradient_cosine", cosines, before)
        for method in (trackstar, ekfac):
            before = children()
            keep(method.__name__, method(checkpoints[-1]["adapter"]), before)
    (out / "seconds.json").write_text(json.dumps(seconds))


def bergson(*words: str) -> None:
    done = subprocess.run([sys.executable, "-m", "bergson", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"bergson {' '.join(words)}\n{done.stdout[-2000:]}\n{done.stderr[-4000:]}")


def children() -> float:
    """Return the CPU seconds of the commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def matrix(folder: Path, facts: dict) -> np.ndarray:
    """Return stored scores, [N, T]."""
    return np.array(load_scores(folder)[:], np.float32).reshape(facts["rows"]["pool"], facts["rows"]["target"])


def save(world: Path, split: str, place: Path) -> str:
    """Write the rows of a split as a data set of tokens and return its folder."""
    tokens = np.load(world / "tokens.npz", allow_pickle=False)
    ids, mask, length = (tokens[f"{split}_{name}"] for name in ("ids", "mask", "length"))
    stops = np.cumsum(length)
    rows = [
        {
            "input_ids": ids[stop - size : stop].tolist(),
            "labels": np.where(mask[stop - size : stop], ids[stop - size : stop], -100).tolist(),
            "length": int(size),
        }
        for stop, size in zip(stops, length, strict=True)
    ]
    folder = str(place / f"rows-{split}")
    Dataset.from_list(rows).save_to_disk(folder)
    return folder


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
