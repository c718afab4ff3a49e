"""What a run costs, by arithmetic: floating-point operations, bytes, hours, and where more workers stop paying off.

Nothing here looks at a machine, a file or a model: facts go in, numbers come out. Operations are those of matrix
products, 2 for each multiply-add, as torch counts them; norms, softmax and the like cost memory traffic and stand in
`Machine.efficiency`.

Shape suffixes: N pool rows, T target columns, P adapter parameters, D feature, K checkpoints.
"""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from influray.data.costs import DataRates

if TYPE_CHECKING:
    from influray.model.shape import ModelShape

# Bytes beside the columns, of a shard (Arrow's own, the receipt, its line in the manifest) and of a manifest: those of
# a small run, whose sum tests/unit/test_planning.py compares with files.
FEATURE_SHARD_BYTES = 1350 + 910 + 650
MATRIX_SHARD_BYTES = 750 + 450 + 280
MANIFEST_BYTES = 650
TARGET_BYTES = 70  # a column's line in targets.arrow
ITEM_BYTES = {"float64": 8, "float32": 4, "bfloat16": 2, "float16": 2}
ROW_FACTS = 4 * 4  # norm, grad_norm, loss, loss_tokens


class Workload(NamedTuple):
    """Rows with their tokens; `squares` is the sum over rows of tokens squared, what attention costs."""

    rows: int
    tokens: int
    loss_tokens: int
    squares: int

    def times(self, factor: float) -> Workload:
        """Return the workload of `factor` passes over it, or of a fraction of its rows."""
        return Workload(*(round(value * factor) for value in self))

    def plus(self, other: Workload) -> Workload:
        return Workload(*map(operator.add, self, other))


@dataclass(frozen=True, slots=True)
class Device:
    """A kind of accelerator: dense matrix products a second by dtype, as its maker states them, and its memory."""

    name: str
    half: float  # operations a second in bfloat16 or float16
    single: float  # in float32, without TF32
    memory: float  # bytes


# NVIDIA's data sheets of H100 SXM, H200 SXM, A100 SXM 80 GB and L40S, without sparsity.
DEVICES = {
    "h100": Device("H100", 989e12, 67e12, 80e9),
    "h200": Device("H200", 989e12, 67e12, 141e9),
    "a100": Device("A100", 312e12, 19.5e12, 80e9),
    "l40s": Device("L40S", 362e12, 91.6e12, 48e9),
}


@dataclass(frozen=True, slots=True)
class Machine:
    """Workers and their rates. `operations` a second are those of one worker at large matrix products."""

    device: Device
    workers: int
    operations: float
    efficiency: float  # share of `operations` that a whole model reaches; assumed, until a run has told

    @property
    def rate(self) -> float:
        """Operations a second of one worker in a model."""
        return self.operations * self.efficiency


# A feature worker on CPU without weights and batches: Ray, torch, transformers, peft. And what a batch keeps for its
# backward, in outputs of the linear layers below the head: PyTorch's memory events show 1.65 for the miniature (30.8 kB
# a token) and 1.56 for SmolLM2-135M (969 kB); the rest is what glibc keeps between batches. Peaks of workers with
# batches of 4,096 tokens, and what this says: the miniature 0.82 and 0.88 GB (0.85) with D = 128, 1.01 (0.89) with
# D = 8,192; SmolLM2 7.7 and 8.0 (8.4).
PROCESS_BYTES = 650e6
ACTIVATIONS = 2.4
# Assumed of a GPU: what public training reports reach (Llama 3, arXiv 2407.21783, has 38 to 43 % in bfloat16).
GPU_EFFICIENCY = 0.35
# On CPU: the miniature's gradient rows on one core of an AMD EPYC, against a product of 512 x 512 there.
CPU_EFFICIENCY = 0.43


@dataclass(frozen=True, slots=True)
class Rates(DataRates):
    """Seconds that are no model's, measured by jobs/benchmark_runtime.py and benchmark_selection.py on 2 CPU cores."""

    driver_shard: float = 2.5e-3  # driver seconds to plan, hand out and take in a shard
    driver_row: float = 1e-6  # driver seconds a row to plan and to freeze
    startup_training: float = 25.0  # until Ray Train trains
    load_bytes: float = 1e9  # bytes a second at which a worker reads its base model
    store_bytes: float = 0.7e9  # bytes a second that a store takes or gives; local disk
    score_operations: float = 20e9  # float16 rows times float32 targets, one core
    learn_operations: float = 4e9  # of what carries exact scores over, float64, one core
    select_score: float = 2.7e-9  # CPU seconds for each number of the attribution matrix


@dataclass(frozen=True, slots=True)
class StepCost:
    """What one step takes. Hours are of one worker; None = cannot be known."""

    operations: float | None = 0.0
    worker_seconds: float | None = 0.0  # over all workers
    driver_seconds: float = 0.0
    bytes: float | None = 0.0  # left on disk
    units: int = 1  # into which the work can be split
    startup: float = 0.0  # seconds until the first worker works
    each: int = 1  # processes in the place of one worker

    def seconds(self, workers: int) -> float | None:
        """Return the wall time with so many workers: the slower of workers and driver, which work side by side."""
        if self.worker_seconds is None:
            return None
        rounds = math.ceil(self.units / min(workers * self.each, self.units))
        share = rounds / self.units  # the last round may be half empty
        return self.startup + max(self.worker_seconds * share, self.driver_seconds)


def forward(shape: ModelShape, work: Workload, share: float = 1.0) -> float:
    """Return the operations of a forward pass through the last `share` of the layers, and of trained positions."""
    layers = 2.0 * shape.body * work.tokens + 4.0 * shape.attention * work.squares
    return share * layers + 2.0 * shape.head * work.loss_tokens


def backward(shape: ModelShape, work: Workload, share: float = 1.0) -> float:
    """Return the operations of their backward, weights frozen: the gradient of every input, of no weight."""
    layers = 2.0 * shape.body * work.tokens + 8.0 * shape.attention * work.squares
    return share * layers + 2.0 * shape.head * work.loss_tokens


def gradient_rows(
    shape: ModelShape, work: Workload, projection: float, checkpointing: bool = False, share: float = 1.0
) -> float:
    """Return the operations of one checkpoint's gradient features, of the last `share` of the layers.

    LoRA layers are merged into their bases, so beside forward and backward a token costs 4 operations for each of
    the P coordinates: the factors through the other matrix, and the outer products. `projection` is operations a row.
    """
    passes = forward(shape, work) + backward(shape, work, share) + (forward(shape, work, share) if checkpointing else 0)
    return passes + 4.0 * share * shape.lora * work.tokens + projection * work.rows


def training(shape: ModelShape, work: Workload) -> float:
    """Return the operations of training the adapter on `work` once: LoRA layers run forward and both backwards."""
    return forward(shape, work) + backward(shape, work) + 6.0 * shape.lora * work.tokens


def projection(name: str, P: int, D: int, nonzeros: int = 1) -> float:
    """Return the operations a row of projecting P coordinates to D; other projectors than these count as free."""
    if name == "rademacher":
        return 2.0 * P * D
    return 2.0 * P * nonzeros if name == "sparse_jl" else 0.0


def scoring(N: int, T: int, D: int, K: int) -> float:
    """Return the operations of the attribution matrix."""
    return 2.0 * N * T * D * K


def feature_row_bytes(D: int, encoding: str = "float16") -> int:
    """Return the bytes of a row of the datastore: its number, facts and vector."""
    vector = {"float16": 2 * D, "int8": D + 4, "sign1": -(-D // 8)}[encoding]
    return 8 + ROW_FACTS + vector


def datastore_bytes(rows: int, shards: int, D: int, encoding: str = "float16") -> int:
    """Return the bytes of one split at one checkpoint, receipts and manifest included."""
    return rows * feature_row_bytes(D, encoding) + shards * FEATURE_SHARD_BYTES + MANIFEST_BYTES


def matrix_bytes(N: int, shards: int, T: int) -> int:
    """Return the bytes of the attribution matrix."""
    return N * (8 + 4 * T) + shards * MATRIX_SHARD_BYTES + 2 * MANIFEST_BYTES + T * TARGET_BYTES


def checkpoint_bytes(P: int) -> int:
    """Return the bytes of a warmup checkpoint: float32 adapter and both moments."""
    return 12 * P


def token_bytes(shape: ModelShape, itemsize: int) -> float:
    """Return the bytes that a token of a batch takes until its backward has passed."""
    return ACTIVATIONS * shape.outputs * itemsize


def worker_memory(shape: ModelShape, weight_bytes: float, itemsize: int, token_budget: int, D: int, rows: int) -> float:
    """Return the bytes that a feature worker takes at its peak, where its model lies; of a CPU its process comes to it.

    Weights with their copies; what the backward of a batch needs; both moments of the adapter; the sums of a batch,
    and the rows of a shard beside those of the one that is being written.
    """
    return weight_bytes + token_bytes(shape, itemsize) * token_budget + 8.0 * shape.lora + 10.0 * D * rows


def worth_workers(worker_seconds: float, startup: float, units: int) -> int:
    """Return up to how many workers one more saves more than it costs: there each works as long as it starts."""
    return max(1, min(units, int(worker_seconds / max(startup, 1e-9))))


def saturating_workers(worker_seconds: float, driver_seconds: float) -> int | None:
    """Return the number of workers that one driver keeps busy; None where it has nothing to do."""
    return None if driver_seconds <= 0 else max(1, int(worker_seconds / driver_seconds))


def limit(parts: dict[str, float]) -> str:
    """Return the part that takes longest of those that run side by side; equal ones in their order."""
    return max(parts, key=lambda name: parts[name])
