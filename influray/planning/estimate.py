"""Facts of a machine, of files and of a config, put into the arithmetic of arithmetic.

Tokens are counted in the catalogue where there is one, else estimated from the first rows of the files.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import os
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.config import Config
from influray.config_base import as_written
from influray.config_select import AutoBudget
from influray.data.costs import COMPRESSED, TOKEN_BYTES, data_seconds, data_workers_pay, numbering_seconds
from influray.planning import arithmetic
from influray.planning.arithmetic import Machine, Rates, StepCost, Workload
from influray.protocols import ConfigError
from influray.registry import WARMED, featurizer_reads, featurizer_traits
from influray.scorers.propagation import propagating_scorers
from influray.store.artifact import read_manifest
from influray.store.run_directory import RunDirectory

if TYPE_CHECKING:
    from influray.data.files import DataFile
    from influray.model.shape import ModelShape

SAMPLE_ROWS = 64  # of each file that is looked at
LOSS_BYTES = 24  # of a loss as JSON has it
PRODUCTS = 100  # of 6 ms on a core of 43 GFLOP/s
SAMPLE_FILES = 16  # of a split, evenly over its names


@dataclass(frozen=True)
class Found:
    """The workload of a split and where the numbers come from."""

    work: Workload
    bytes: float
    file_rows: tuple[int, ...]
    exact: bool
    uncounted: tuple[str, ...] = ()  # hf:// entries whose rows nobody tells; they are left out of the numbers

    def times(self, share: float) -> Found:
        """Return a share of it, as evenly over the files as can be known."""
        rows = tuple(round(share * rows) for rows in self.file_rows)
        return Found(self.work.times(share), share * self.bytes, rows, False, self.uncounted)


def find_machine(config: Config, device: str | None, workers: int | None) -> Machine:
    """Return the machine to plan for: of this name, or this one.

    Raises:
        ConfigError: no such device, or no worker.
    """
    if device is not None and device != "cpu" and device not in arithmetic.DEVICES:
        raise ConfigError(f"--device: found {device!r}, expected cpu, {', '.join(arithmetic.DEVICES)}")
    if workers is not None and workers < 1:
        raise ConfigError(f"--workers: found {workers}, expected 1 or more")
    wanted = config.resources.workers
    name, here = (device, os.cpu_count() or 1) if device is not None else _own_device()
    count = workers or (here if wanted == "auto" else wanted)
    if name == "cpu":
        rate = _probe(config.resources.threads_per_worker)
        return Machine(arithmetic.Device("CPU", 0.0, 0.0, 0.0), count, rate, arithmetic.CPU_EFFICIENCY)
    known = arithmetic.DEVICES[name]
    rate = known.single if config.model.dtype in ("float32", "float64") else known.half
    share = config.resources.gpus_per_worker
    return Machine(known, count, rate * (1.0 if share == "auto" else share or 1.0), arithmetic.GPU_EFFICIENCY)


def _own_device() -> tuple[str, int]:
    import torch

    if not torch.cuda.is_available():
        return "cpu", os.cpu_count() or 1
    name = torch.cuda.get_device_name(0).lower()
    for key in arithmetic.DEVICES:
        if key in name:
            return key, torch.cuda.device_count()
    raise ConfigError(f"--device: this machine has {name!r}, whose rate is not known; name the nearest device")


def _probe(threads: int) -> float:
    """Return the operations a second of a product of 512 x 512 float32 here, by so many threads with a core each.

    The CPU time of one thread, times their number: a clock on the wall would tell what else the machine is at (2 to
    36 GFLOP/s beside three busy processes on two cores, where CPU time tells 36.1 to 36.9), and threads that wait for
    each other use CPU time. The best of many short products is one whose core and cache nobody shared.
    """
    import threadpoolctl

    a, b = (np.ones((512, 512), np.float32) for _ in range(2))
    best = math.inf
    with threadpoolctl.threadpool_limits(1):
        for _ in range(PRODUCTS):
            began = time.thread_time()
            np.matmul(a, b)
            best = min(best, time.thread_time() - began)
    return threads * 2.0 * 512**3 / best


def find_split(config: Config, directory: RunDirectory, split: str, current: bool) -> Found:
    """Return the workload of pool, target or test: counted where the catalogue is that of the config, else estimated.

    Raises:
        DataError: a file of the config is not there.
    """
    if current and read_manifest(directory.data(split)) is not None:
        from influray.data.catalogue import Catalogue

        catalogue = Catalogue(directory.data(split))
        facts = catalogue.facts("tokens", "loss_tokens")
        tokens_N = facts["tokens"].astype(np.int64)
        work = Workload(
            len(catalogue), int(tokens_N.sum()), int(facts["loss_tokens"].sum()), int((tokens_N * tokens_N).sum())
        )
        size = sum(path.stat().st_size for path in directory.data(split).glob("part-*.arrow"))
        return Found(work, float(size), tuple(catalogue.file_lengths), exact=True)
    return _sampled(config, split)


def _sampled(config: Config, split: str) -> Found:
    files = list(_files_of(config, split))
    if not files:
        return Found(Workload(0, 0, 0, 0), 0.0, (), exact=True)
    encoder = _encoder(config)
    step = max(1, len(files) // SAMPLE_FILES)
    # Of data sets alone no row is looked at: half of max_tokens stands for theirs.
    sample = [row for file, _ in files[::step] for row in _sample(file, config, encoder)]
    most = config.data.max_tokens
    size_n, token_n, trained_n = np.array(sample or [(1, most // 2, most // 4)], np.float64).T
    counts = [(file, _row_count(file, float(size_n.mean())), limit) for file, limit in files]
    rows = [min(count or 0, count or 0 if limit is None else limit) for _, count, limit in counts]
    total = sum(rows)
    means = token_n.mean(), trained_n.mean(), (token_n**2).mean()
    work = Workload(total, *(round(total * float(mean)) for mean in means))
    size = total * float(size_n.mean() + 4.0 * token_n.mean() + 80)
    return Found(work, size, tuple(rows), False, tuple(file.path for file, count, _ in counts if count is None))


def _files_of(config: Config, split: str) -> Iterator[tuple[DataFile, int | None]]:
    """Yield the files of a split, each with the most rows that are read of it."""
    from influray.data.entries import pool_files, target_files

    data = config.data
    if split == "pool":
        yield from ((file, file.reading.limit) for file in pool_files(data))
        return
    for task, target in data.targets.items():
        limit = target.limit if split == "target" else target.test_limit
        for file in target_files(data, task, split == "test"):
            yield file, min((found for found in (limit, file.reading.limit) if found is not None), default=None)


def _sample(file: DataFile, config: Config, encoder: Any) -> Iterator[tuple[int, int, int]]:
    """Yield (bytes, tokens, trained tokens) of the first usable rows of a file."""
    from influray.data.readers import read_rows
    from influray.data.records import BadRow

    if file.kind == "hub":
        return
    lines = read_rows(file, config.data.max_line_bytes, config.data.max_file_bytes)
    for _, raw in itertools.islice(lines, SAMPLE_ROWS):
        if isinstance(raw, BadRow):
            continue
        if encoder is None:
            tokens = min(config.data.max_tokens, max(1, round(len(raw) / TOKEN_BYTES)))
            yield len(raw), tokens, tokens // 2
            continue
        with contextlib.suppress(BadRow):
            encoded = encoder.encode(file.reading.parse(raw, file.stem))
            yield len(raw), len(encoded.input_ids), encoded.loss_tokens


def _row_count(file: DataFile, mean_size: float) -> int | None:
    if file.kind == "parquet":
        import pyarrow.parquet as pq

        return pq.ParquetFile(file.path).metadata.num_rows
    if file.kind == "hub":
        from influray.data.hub import count

        return count(file.path)
    size = Path(file.path).stat().st_size * (COMPRESSED if file.compression else 1.0)
    return max(1, round(size / (mean_size + 1)))


def _encoder(config: Config) -> Any:
    """Return what turns records into tokens, None where the tokenizer is not on this machine."""
    if not Path(config.model.base).is_dir():
        from huggingface_hub import try_to_load_from_cache
        from huggingface_hub.errors import LocalEntryNotFoundError

        try:
            if not isinstance(try_to_load_from_cache(config.model.base, "tokenizer.json"), str):
                return None
        except LocalEntryNotFoundError:
            return None
    from influray.data.chat import ChatEncoder
    from influray.model.loading import load_tokenizer

    return ChatEncoder(load_tokenizer(config.model), config.model.chat_template, config.data.max_tokens)


def trained_checkpoints(config: Config, rows: int) -> int:
    """Return how many checkpoints a warmup of a pool of so many rows leaves, or how many are imported."""
    if config.warmup.checkpoints:
        return len(config.warmup.checkpoints)
    if tasks := config.warmup.tuned_on(config.data.targets):
        return len(tasks)
    if config.warmup.steps is None:
        return config.warmup.epochs
    in_epoch = -(-max(1, int(as_written(config.warmup.fraction) * rows)) // config.warmup.batch_size)
    return -(-config.warmup.steps // in_epoch)


def costs(
    config: Config,
    shape: ModelShape | None,
    machine: Machine,
    found: Mapping[str, Found],
    checkpoints: int,
    rates: Rates = Rates(),  # noqa: B008 - frozen
    whole: Found | None = None,
) -> dict[str, StepCost]:
    """Return the cost of every step that runs, by name; what the cheap pass of a cascade costs is left open.

    `whole` is the pool with the rows that do not pass a cascade, where there is one.
    """
    pool, target, test = (found[split] for split in ("pool", "target", "test"))
    whole = whole or pool
    reads = featurizer_reads(config.features.featurizer)
    per = config.features.rows_per_shard
    shards = {s: sum(-(-rows // per) for rows in found[s].file_rows) for s in ("pool", "target")}
    N, T = pool.work.rows, target.work.rows
    every = pool.work.plus(target.work)
    parts = len(pool.file_rows) + N // 8192 + 1
    made: dict[str, StepCost] = {}
    size = pool.bytes + target.bytes + test.bytes + 2000.0 * parts
    if config.cascade is None:
        made["data"] = _data_cost(config, machine, every.plus(test.work), size, rates)
    else:  # what passes is copied
        made["cascade"] = StepCost()
        read = _data_cost(config, machine, target.work.plus(test.work), size, rates)
        made["data"] = replace(read, driver_seconds=read.driver_seconds + pool.bytes / rates.store_bytes)
    if reads in WARMED and config.warmup.checkpoints:
        made["warmup"] = StepCost(0.0, 0.0, 1.0, 0.0 if shape is None else checkpoints * 12.0 * shape.lora)
    elif reads in WARMED:
        trained = whole if config.warmup.train_on == "pool" else target
        work = trained.work.times(config.warmup.fraction * config.warmup.epochs)
        made["warmup"] = _training_cost(shape, machine, work, checkpoints, _parts_of(1, config, machine))
    units = (shards["pool"] + shards["target"]) * checkpoints
    driver = rates.driver_shard * units + rates.driver_row * every.rows * checkpoints
    vectors = _numbers(config, shape)
    size = checkpoints * (
        arithmetic.datastore_bytes(N, shards["pool"], vectors, config.features.store)
        + arithmetic.datastore_bytes(T, shards["target"], vectors)
    )
    operations = _feature_operations(config, shape, every, reads)
    total = None if operations is None else operations * checkpoints
    seconds = None if total is None else total / machine.rate
    if reads == "records":
        seconds = rates.data_row * every.rows
    startup = startup_seconds(config, None if reads == "records" else shape, rates)
    made["featurize"] = StepCost(total, seconds, driver, float(size), max(1, units), startup)
    score, learning = arithmetic.scoring(N, T, vectors or 1, checkpoints), 0.0
    for scorer in propagating_scorers(config, cascade=False):
        learning, each = scorer.operations(len(scorer.exact), vectors * checkpoints, T)
        score = N * each
    reading = N * checkpoints * arithmetic.feature_row_bytes(vectors, config.features.store) / rates.store_bytes
    made["score"] = StepCost(
        score,
        max(score / rates.score_operations, reading),
        rates.driver_shard * shards["pool"] + rates.driver_row * N + learning / rates.learn_operations,
        float(arithmetic.matrix_bytes(N, shards["pool"], T)),
        max(1, shards["pool"]),
    )
    chosen = sum(_share(selector.budget, whole.work) for selector in config.selectors)
    made["select"] = StepCost(
        0.0, 0.0, rates.select_score * N * T * len(config.selectors), chosen * whole.bytes, len(config.selectors)
    )
    if config.tune is not None:
        made["tune"], made["evaluate"] = _tuning(config, shape, machine, whole.work, test.work)
    return made


def _numbers(config: Config, shape: ModelShape | None) -> int:
    """Return of how many numbers the vectors are; 0 where there are none."""
    traits = featurizer_traits(config.features.featurizer)
    if traits.makes != "vectors":
        return 0
    return shape.hidden if traits.reads == "base" and shape is not None else config.features.projector.dimension


def _data_cost(config: Config, machine: Machine, work: Workload, size: float, rates: Rates) -> StepCost:
    from influray.data.jobs import DRAFT_BYTES

    seconds = data_seconds(work.rows, work.tokens, rates)
    asked = config.resources
    cores = (os.cpu_count() or 1) / machine.workers if asked.workers == "auto" else asked.cpus_per_worker
    each = max(1, int(cores))
    if not data_workers_pay(seconds, machine.workers * each, rates):
        return StepCost(0.0, 0.0, seconds, size)
    units = max(1, int(work.tokens * TOKEN_BYTES / DRAFT_BYTES))
    driver = numbering_seconds(work.rows, work.tokens, rates)
    return StepCost(0.0, seconds, driver, size, units, rates.startup, each)


def _tuning(
    config: Config, shape: ModelShape | None, machine: Machine, pool: Workload, test: Workload
) -> tuple[StepCost, StepCost]:
    assert config.tune is not None
    if config.tune.model is not None:
        from influray.model.shape import model_shape

        shape = model_shape(config.tune.model)
    shares = {selector.name: _share(selector.budget, pool) for selector in config.selectors} | {"full": 1.0}
    chosen = config.tune.selections
    names = [selector.name for selector in config.selectors] if chosen == "all" else chosen
    count = len(names) * len(config.tune.seeds)
    passes = sum(shares[name] for name in names) * len(config.tune.seeds) * config.tune.epochs
    if config.tune.steps is not None:
        passes = count * config.tune.steps * config.tune.batch_size / max(1, pool.rows)
    if config.tune.tokens is not None:
        passes = count * config.tune.tokens / max(1, pool.tokens)
    tune = _training_cost(shape, machine, pool.times(passes), count, _parts_of(count, config, machine))
    if shape is None:
        return tune, StepCost(None, None, 0.0, 0.0)
    judged = arithmetic.forward(shape, test) * (count + 1)
    return tune, StepCost(judged, judged / machine.rate, 0.0, 2000.0 * (count + 1), count + 1)


def startup_seconds(config: Config, shape: ModelShape | None, rates: Rates) -> float:
    """Return the seconds until a worker works, with a model where it loads one."""
    weights = 0 if shape is None else shape.parameters
    return rates.startup + arithmetic.ITEM_BYTES[config.model.dtype] * weights / rates.load_bytes


def retraining_cost(
    config: Config, shape: ModelShape | None, machine: Machine, work: Workload, judged: Workload, count: int
) -> StepCost:
    """Return the cost of so many retrainings, which go through `work` together and judge `judged` each."""
    if shape is None:
        return StepCost(None, None, 0.0, None)
    operations = arithmetic.training(shape, work) + count * arithmetic.forward(shape, judged)
    size = count * (LOSS_BYTES * judged.rows + 900.0)  # the file of a retraining: a line a loss
    startup = startup_seconds(config, shape, Rates())
    return StepCost(operations, operations / machine.rate, 0.0, size, max(1, count), startup)


def _parts_of(jobs: int, config: Config, machine: Machine) -> int:
    """Return how many processes so many trainings can keep busy (runtime.training.plan_layout)."""
    ranks = config.resources.training_workers
    if ranks == "auto":
        ranks = machine.workers if machine.device.memory else 1  # a process a GPU; on CPUs it is one
    return ranks if 1 < ranks >= jobs else jobs


def _training_cost(shape: ModelShape | None, machine: Machine, work: Workload, kept: int, units: int) -> StepCost:
    if shape is None:
        return StepCost(None, None, 0.0, None)
    operations = arithmetic.training(shape, work)
    size = float(kept * arithmetic.checkpoint_bytes(shape.lora))
    seconds = operations / machine.rate
    return StepCost(operations, seconds, 0.0, size, max(1, units), Rates().startup_training)


def _feature_operations(config: Config, shape: ModelShape | None, work: Workload, reads: str) -> float | None:
    if reads == "records":
        return 0.0
    if shape is None:
        return None
    if reads == "base":
        return arithmetic.forward(shape, work)
    if reads == "adapters":
        return arithmetic.forward(shape, work) + 2.0 * shape.lora * work.tokens
    projector = config.features.projector
    nonzeros = projector.options.get("nonzeros", 1)
    share = config.features.layers_of(shape.layers) / shape.layers
    a_row = arithmetic.projection(projector.name, round(share * shape.lora), projector.dimension, nonzeros)
    return arithmetic.gradient_rows(shape, work, a_row, config.features.gradient_checkpointing, share)


def _share(budget: Any, pool: Workload) -> float:
    if isinstance(budget, float):
        return budget
    if isinstance(budget, int):
        return min(1.0, budget / max(1, pool.rows))
    if isinstance(budget, AutoBudget):  # the most that it may be
        return _share(budget.most, pool)
    return min(1.0, budget.tokens / max(1, pool.tokens))
