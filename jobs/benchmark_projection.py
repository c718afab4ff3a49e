"""How far projection moves a run's attribution matrix, with one matrix for all checkpoints and with one for each.

    python jobs/benchmark_projection.py RUN [--rows 1000] [--dimensions 512,1024,2048,4096,8192] [--seeds 3] [--out F]

Gradients of pool rows, drawn by seed 0, and of all targets are computed anew at the run's checkpoints and kept whole,
[rows, P] a checkpoint; each projector is put on the same ones. "moved" is the standard deviation of A's change over
that of the unprojected A, both within a column; "correlation" is Pearson's within a column, mean over columns; "kept"
is the share of the rows that a method chooses from the unprojected A (5 % of the rows) that it still chooses. Mean over
seeds +- the standard error.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import influray
from influray.config import Config, FeaturesConfig
from influray.data.batches import plan_batches
from influray.data.catalogue import Catalogue
from influray.features.gradient import GradientFeaturizer
from influray.model.checkpoints import load_checkpoint
from influray.model.loading import attach_adapter, load_base
from influray.registry import make
from influray.runs import Run, open_run
from influray.store.datastore import Datastore

METHODS = ("less", "bids")


def whole_gradients(run: Run, split: str, rows: np.ndarray, checkpoint: int) -> Tensor:
    """Return the unit directions of rows at a checkpoint, float32 [rows, P]."""
    directory, config = run.directory, run.config
    catalogue = Catalogue(directory.data(split))
    examples = [catalogue.tokenized(row, row + 1)[0] for row in rows.tolist()]
    found = load_checkpoint(directory.checkpoint(checkpoint))
    model = attach_adapter(load_base(config.model), found.adapter)
    direction = config.features.direction if split == "pool" else "sgd"
    given = _identity(config, model), found.moments() if direction == "adam" else None, direction
    featurizer = GradientFeaturizer(model, *given)
    out = torch.zeros(len(rows), featurizer.dimension)
    place = {example.row: at for at, example in enumerate(examples)}
    for batch in plan_batches([example.tokens for example in examples], 4096):
        block = featurizer.compute([examples[at] for at in batch])
        assert not block.failures, block.failures
        out[[place[row] for row in np.asarray(block.row_B).tolist()]] = torch.from_numpy(
            np.asarray(block.feature_BD, np.float32)
        )
    featurizer.close()
    return out


def _identity(config: Config, model: torch.nn.Module) -> FeaturesConfig:
    size = sum(weight.numel() for name, weight in model.named_parameters() if "lora_" in name)
    projector = config.features.projector.model_copy(update={"name": "identity", "dimension": size, "options": {}})
    return config.features.model_copy(update={"projector": projector, "blocks": "whole"})


def unit(row_BD: Tensor) -> Tensor:
    return row_BD / row_BD.norm(dim=1, keepdim=True)


def chosen(matrix: np.ndarray, tasks: Sequence[str]) -> dict[str, set[int]]:
    budget = len(matrix) // 20
    return {name: set(influray.select(matrix, tasks, budget, method=name).rows.tolist()) for name in METHODS}


def measure(arguments: argparse.Namespace) -> dict[str, Any]:
    run = open_run(arguments.run)
    attribution = run.attribution()
    weights, tasks = attribution.manifest["weights"], list(attribution.groups)
    target_T = Datastore(run.directory.features("target", 1)).column("row")
    pool_N = np.sort(np.random.default_rng(0).permutation(attribution.rows)[: arguments.rows])
    pools, targets = [], []
    for k in range(1, len(weights) + 1):
        pools.append(whole_gradients(run, "pool", pool_N, k))
        targets.append(whole_gradients(run, "target", target_T, k))
    parameters = pools[0].shape[1]

    def matrix(pool: Sequence[Tensor], target: Sequence[Tensor]) -> np.ndarray:
        parts = [w * unit(x.double()) @ unit(v.double()).T for w, x, v in zip(weights, pool, target, strict=True)]
        return torch.stack(parts).sum(dim=0).numpy()

    exact_NT = matrix(pools, targets)
    wanted, deviation_T = chosen(exact_NT, tasks), exact_NT.std(axis=0)
    found: list[dict[str, Any]] = []
    settings = run.config.features.projector
    for dimension in arguments.dimensions:
        for matrices in ("one", "each"):
            for seed in range(arguments.seeds):
                given = {"seed": seed, "matrices": matrices, "name": arguments.projector, "options": {}}
                pool, target = [], []
                for k in range(1, len(weights) + 1):
                    at = settings.model_copy(update=given).at(k)
                    projector = make("projectors", at.name, at.options, dimension, parameters, at.seed, "cpu")
                    for rows, out in ((pools[k - 1], pool), (targets[k - 1], target)):
                        out.append(torch.zeros(len(rows), dimension))
                        projector.add_slice(out[-1], rows, 0)
                made_NT = matrix(pool, target)
                off_NT = (made_NT - exact_NT) / deviation_T
                moved = float(np.sqrt(np.mean((off_NT - off_NT.mean(axis=0)) ** 2)))
                same = [np.corrcoef(made_NT[:, t], exact_NT[:, t])[0, 1] for t in range(made_NT.shape[1])]
                mine = chosen(made_NT, tasks)
                kept = {name: len(mine[name] & wanted[name]) / len(wanted[name]) for name in METHODS}
                facts = {"dimension": dimension, "matrices": matrices, "seed": seed}
                found.append({**facts, "moved": moved, "correlation": float(np.mean(same)), **kept})
    return {"rows": len(pool_N), "columns": len(tasks), "checkpoints": len(weights), "P": parameters, "found": found}


def table(result: dict[str, Any]) -> str:
    names = ("moved", "correlation", *METHODS)
    lines = [
        f"{result['rows']} rows, {result['columns']} columns, {result['checkpoints']} checkpoints, P {result['P']:,}",
        "",
        "| D | matrices | moved | correlation | LESS kept | BIDS kept |",
        "|---|---|---|---|---|---|",
    ]
    groups: dict[tuple[int, str], list[dict[str, Any]]] = {}
    for one in result["found"]:
        groups.setdefault((one["dimension"], one["matrices"]), []).append(one)
    for (dimension, matrices), many in groups.items():
        cells = []
        for name in names:
            values = [one[name] for one in many]
            error = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
            cells.append(f"{statistics.mean(values):.3f} +- {error:.3f}")
        lines.append(f"| {dimension:,} | {matrices} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path, help="a scored run directory")
    parser.add_argument("--rows", type=int, default=1000)
    parser.add_argument("--dimensions", type=lambda text: [int(one) for one in text.split(",")])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--projector", default="sparse_jl")
    parser.add_argument("--out", type=Path, help="write every measurement as JSON")
    parser.set_defaults(dimensions=[512, 1024, 2048, 4096, 8192])
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    result = measure(arguments)
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(result, indent=1))
    print(table(result))


if __name__ == "__main__":
    main()
