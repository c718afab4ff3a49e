"""From 10^6 to 10^9 examples on 1 to 1,024 GPUs: hours, terabytes, and what the limit is. Arithmetic alone, no GPU.

    python jobs/plan_table.py [--device h100] [--tokens 500] [--targets 350] [--checkpoints 4] [--dimension 8192]

The model is Llama-3-8B with LoRA of rank 128, as in arXiv 2501.12147. Rates of the driver, the store and the selection
are those measured on two CPU cores (planning.arithmetic.Rates); that of a GPU is its
maker's times an assumed efficiency.
Every 8 GPUs have a store of that rate and 64 CPU cores to tokenise and to score with; driver and selection are one
process.
"""

from __future__ import annotations

import argparse

from influray.data.costs import data_seconds, numbering_seconds
from influray.formatting import large, seconds
from influray.model.shape import ModelShape
from influray.planning import arithmetic
from influray.planning.arithmetic import DEVICES, GPU_EFFICIENCY, Rates, Workload

LAYERS, WIDTH, KEYS, INNER, VOCABULARY, RANK = 32, 4096, 1024, 14336, 128256, 128
LLAMA_3_8B = ModelShape(
    hidden=4096,
    parameters=8_030_261_248,
    body=LAYERS * (2 * WIDTH * WIDTH + 2 * WIDTH * KEYS + 3 * WIDTH * INNER),
    head=VOCABULARY * WIDTH,
    attention=LAYERS * WIDTH,
    layers=LAYERS,
    lora=LAYERS * RANK * (2 * (WIDTH + WIDTH) + 2 * (WIDTH + KEYS)),
    outputs=LAYERS * (2 * WIDTH + 2 * KEYS + 2 * INNER + WIDTH),
)
GPUS = (1, 8, 64, 1024)
EXAMPLES = (10**6, 10**7, 10**8, 10**9)
CORES = 8  # for each GPU


def line(N: int, gpus: int, args: argparse.Namespace, rates: Rates) -> tuple[str, ...]:
    """Return one line of the table."""
    shape, K, D, T = LLAMA_3_8B, args.checkpoints, args.dimension, args.targets
    work = Workload(N, N * args.tokens, N * args.tokens // 2, N * args.tokens**2)
    a_row = arithmetic.projection("rademacher", shape.lora, D)
    operations = K * arithmetic.gradient_rows(shape, work, a_row)
    shards = -(-N // args.rows_per_shard)
    stores = max(1, gpus // 8)
    size = K * arithmetic.datastore_bytes(N, shards, D) + arithmetic.matrix_bytes(N, shards, T)
    parts = {
        "data": max(
            data_seconds(N, N * args.tokens, rates) / (gpus * CORES),
            numbering_seconds(N, N * args.tokens, rates),
        ),
        "GPUs": operations / (gpus * DEVICES[args.device].half * GPU_EFFICIENCY),
        "driver": K * (shards * rates.driver_shard + N * rates.driver_row),
        "store": 2 * size / (stores * rates.store_bytes),  # written once, read once by the scores
        "scores": arithmetic.scoring(N, T, D, K) / (gpus * CORES * rates.score_operations),
        "selection": N * T * max(rates.select_score, 4 / rates.store_bytes),
    }
    times = (seconds(value) for value in parts.values())
    return (large(N), str(gpus), *times, large(size, "B"), arithmetic.limit(parts))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=sorted(DEVICES), default="h100")
    parser.add_argument("--tokens", type=int, default=500, help="of an example; half of them are trained")
    parser.add_argument("--targets", type=int, default=350)
    parser.add_argument("--checkpoints", type=int, default=4)
    parser.add_argument("--dimension", type=int, default=8192)
    parser.add_argument("--rows-per-shard", type=int, default=1024)
    args = parser.parse_args()
    rates = Rates()
    print(
        f"{DEVICES[args.device].name} at {GPU_EFFICIENCY:.0%} of {DEVICES[args.device].half:.3g} FLOP/s (assumed); "
        f"data {1e6 * rates.data_row:g} us a row and {1e6 * rates.data_token:g} us a token of one core, of the driver "
        f"{1e6 * rates.number_row:g} us a row and {1e6 * rates.number_token:g} us a token, "
        f"driver {1e3 * rates.driver_shard:g} ms a shard and {1e6 * rates.driver_row:g} us a row, store "
        f"{rates.store_bytes / 1e9:g} GB/s, scores {rates.score_operations / 1e9:g} GFLOP/s a core, selection "
        f"{1e9 * rates.select_score:g} ns a score (measured)\n"
    )
    print("| examples | GPUs | data | gradients | driver | store | scores | selection | on disk | limit |")
    print("|---|---|---|---|---|---|---|---|---|---|")
    for N in EXAMPLES:
        for gpus in GPUS:
            print(f"| {' | '.join(line(N, gpus, args, rates))} |")


if __name__ == "__main__":
    main()
