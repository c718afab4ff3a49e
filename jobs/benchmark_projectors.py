"""What projectors cost, and how far their inner products are off at the same D.

    python jobs/benchmark_projectors.py [--dimension 8192] [--rows 16] [--coordinates 65536] [--seeds 200]

Cost: CPU time of one thread, median of rounds in which all take turns, beside a plain copy of the same numbers; signs
that fit the cache are made before. Errors are measured on rows of unit norm at a smaller D, where dense signs are
affordable: their mean square over the variance that dense signs would have, their fourth moment over the squared
second (3 for a normal distribution), and the mean square under the worst seed: a run has one seed only.
"""

from __future__ import annotations

import argparse
import os
import platform
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from influray.registry import resolve

PROJECTORS: tuple[tuple[str, dict[str, int]], ...] = (
    ("rademacher", {}),
    ("sparse_jl", {"nonzeros": 1}),
    ("sparse_jl", {"nonzeros": 2}),
    ("sparse_jl", {"nonzeros": 4}),
    ("sparse_jl", {"nonzeros": 8}),
    ("hadamard", {"block": 16}),
    ("hadamard", {"block": 64}),
)
P, ROWS = 4 * 64 * 256, 12  # of the rows whose errors are measured: four blocks of a LoRA of rank 64, 256 inputs


def label(name: str, options: dict[str, int]) -> str:
    return " ".join([name, *(f"{key}={value}" for key, value in options.items())])


def make(name: str, options: dict[str, int], dimension: int, parameters: int, seed: int = 0):
    return resolve("projectors", name, "features.projector.name")(dimension, parameters, seed, "cpu", **options)


def hashed_count_sketch(dimension: int, coordinates: int) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the textbook's count-sketch, a hashed column and sign for each coordinate, as PyTorch has it."""
    column_p = torch.randint(dimension, (coordinates,))
    sign_p = torch.randint(2, (coordinates,)) * 2.0 - 1
    return lambda out_BD, block_Bp: out_BD.index_add_(1, column_p, block_Bp * sign_p)


def costs(dimension: int, rows: int, coordinates: int, rounds: int) -> dict[str, float]:
    """Return median CPU seconds for a million coordinates of a row, by label."""
    block_Bp, copy_Bp = torch.randn(2, rows, coordinates)
    out_BD = torch.zeros(rows, dimension)
    sketch = hashed_count_sketch(dimension, coordinates)
    calls: dict[str, Callable[[], object]] = {
        "copy": lambda: copy_Bp.copy_(block_Bp),
        "index_add_ count-sketch": lambda: sketch(out_BD, block_Bp),
    }
    for name, options in PROJECTORS:
        projector = make(name, options, dimension, coordinates)
        calls[label(name, options)] = lambda projector=projector: projector.add_slice(out_BD, block_Bp, 0)
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(rounds + 1):  # the first one fills caches
        for name, call in calls.items():
            start = time.thread_time()
            call()
            seconds[name].append(time.thread_time() - start)
    return {name: statistics.median(times[1:]) * 1e6 / (rows * coordinates) for name, times in seconds.items()}


def gradients() -> dict[str, Tensor]:
    """Return rows of unit norm, [ROWS, P], that are spread evenly, heavy-tailed, of low rank, or in a few columns."""
    torch.manual_seed(0)
    scale = torch.randn(1, 4, 64, 1).exp()  # outputs that all rows use more, or less
    left, right = torch.randn(ROWS, 4, 64, 4) * scale, torch.randn(ROWS, 4, 4, 256)
    outlier = right.clone()
    outlier[..., 7] *= 30  # an input feature with massive activations
    kinds = {
        "Gaussian": torch.randn(ROWS, P),
        "heavy-tailed": torch.distributions.StudentT(2.1).sample((ROWS, P)),
        "rank 4": (left @ right).reshape(ROWS, P),
        "rank 4, outlier feature": (left @ outlier).reshape(ROWS, P),
    }
    return {kind: torch.nn.functional.normalize(row_BP) for kind, row_BP in kinds.items()}


def errors(
    name: str, options: dict[str, int], dimension: int, seeds: int, kinds: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Return errors of inner products over the standard deviation of dense signs, [seeds, pairs], by kind."""
    first, second = torch.triu_indices(ROWS, ROWS, 1)
    stacked = torch.cat(list(kinds.values()))
    found = []
    for seed in range(seeds):
        out_BD = torch.zeros(len(stacked), dimension)
        make(name, options, dimension, P, seed).add_slice(out_BD, stacked, 0)
        parts = out_BD.double().view(len(kinds), ROWS, dimension)
        found.append((parts @ parts.mT)[:, first, second])
    result = {}
    for k, (kind, row_BP) in enumerate(kinds.items()):
        row_BP = row_BP.double()
        exact, square = row_BP @ row_BP.T, row_BP**2
        variance = (1 + exact**2 - 2 * square @ square.T) / dimension
        error = torch.stack([estimate[k] for estimate in found]) - exact[first, second]
        result[kind] = error / variance[first, second].sqrt()
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description="What projectors cost, and how far inner products are off.")
    parser.add_argument("--dimension", type=int, default=8192, help="D for the cost")
    parser.add_argument("--rows", type=int, default=16, help="rows of a batch for the cost")
    parser.add_argument("--coordinates", type=int, default=65536, help="of a block for the cost")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--error-dimension", type=int, default=1024, help="D for the errors")
    parser.add_argument("--seeds", type=int, default=200)
    args = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{platform.machine()}, {os.cpu_count()} cores, one used; PyTorch {torch.__version__}")
    print(f"cost at D = {args.dimension}, {args.rows} rows of {args.coordinates:,} coordinates\n")
    print(f"{'':26} {'CPU s / 1M':>10} {'of a copy':>10}")
    cost = costs(args.dimension, args.rows, args.coordinates, args.rounds)
    for name, seconds in cost.items():
        print(f"{name:26} {seconds:10.5f} {seconds / cost['copy']:9.1f}x")
    kinds = gradients()
    few = max(2, args.seeds // 5)
    print(
        f"\nerrors at D = {args.error_dimension}, {P:,} coordinates, {args.seeds} seeds (rademacher {few}): "
        "mean square / fourth moment / worst seed"
    )
    print(f"{'':26} " + " ".join(f"{kind:>24}" for kind in kinds))
    spread = " ".join(f"{1 / float((row_BP[0] ** 4).sum()):24,.0f}" for row_BP in kinds.values())
    print(f"{'coordinates in effect':26} {spread}")
    for name, options in PROJECTORS:
        line = []
        seeds = few if name == "rademacher" else args.seeds
        for error in errors(name, options, args.error_dimension, seeds, kinds).values():
            square = error**2
            fourth = float((square**2).mean() / square.mean() ** 2)
            line.append(f"{float(square.mean()):.2f} / {fourth:.1f} / {float(square.mean(1).max()):.1f}".rjust(24))
        print(f"{label(name, options):26} " + " ".join(line), flush=True)


if __name__ == "__main__":
    main()
