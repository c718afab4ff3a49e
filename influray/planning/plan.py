"""What a run would take, and what of it is done: estimates before it, estimates beside what was measured after it.

Neither Ray nor a model is started: shapes come from the base's config.json.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from influray.config import Config
from influray.config_select import AutoBudget
from influray.features.epsilon_share import epsilon_text, mostly_epsilon, stored_shares
from influray.planning import arithmetic
from influray.planning.arithmetic import Machine, Rates, StepCost
from influray.planning.estimate import Found, costs, find_machine, find_split, retraining_cost, trained_checkpoints
from influray.registry import WARMED, featurizer_reads
from influray.steps import STEPS, Step
from influray.steps.cheap_pass import cheap_run
from influray.steps.states import step_states
from influray.store.artifact import read_manifest
from influray.store.run_directory import RunDirectory
from influray.validation.sizes import sizes

if TYPE_CHECKING:
    from influray.model.shape import ModelShape

CPU_BATCH_TOKENS, GPU_BATCH_TOKENS = 4096, 65536  # what `features.token_budget: auto` comes to, at most


@dataclass(frozen=True)
class PlannedStep:
    """One line of a plan; None = unknown, or not of this step."""

    name: str
    state: str
    what: str
    rows: int | None = None
    tokens: int | None = None
    operations: float | None = None
    worker_hours: float | None = None
    wall_seconds: float | None = None
    bytes: float | None = None
    actual_seconds: float | None = None

    @property
    def ratio(self) -> float | None:
        """Actual by estimated wall time."""
        return self.actual_seconds / self.wall_seconds if self.actual_seconds and self.wall_seconds else None


@dataclass(frozen=True)
class Plan:
    """What a run would take. Bytes and seconds; `limit` is the slowest part of featurize."""

    steps: tuple[PlannedStep, ...]
    device: str
    workers: int
    worker_operations: float  # a second, in a model
    memory_per_worker: float | None
    shards: int
    worth_workers: int | None  # beyond it start-up costs more than the work saves
    saturating_workers: int | None  # more of them wait for the driver
    limit: str
    notes: tuple[str, ...]
    validation: PlannedStep  # what `influray validate` would take, which is no step of a run

    def as_plain(self) -> dict[str, Any]:
        """Return it as JSON takes it."""
        return {
            **asdict(self),
            "steps": [{**asdict(step), "ratio": step.ratio} for step in self.steps],
            "validation": {**asdict(self.validation), "ratio": self.validation.ratio},
        }


def make_plan(config: Config, directory: RunDirectory, device: str | None = None, workers: int | None = None) -> Plan:
    """Return the plan of a run on a machine: this one, or `workers` of `device`.

    Raises:
        ConfigError: no such device, or a base that is a folder and no model.
        DataError: a file of the config is not there.
    """
    return _plan(config, directory, find_machine(config, device, workers))[0]


def _plan(config: Config, directory: RunDirectory, machine: Machine) -> tuple[Plan, Found]:
    """Return the plan of a run, and the pool that it was made for."""
    from influray.model.shape import model_shape

    states = step_states(config, directory)
    current = states["data"].startswith("done")
    cheap = None if config.cascade is None else _plan(*cheap_run(config, directory), machine)
    splits = ("pool", "target", "test") if cheap is None or current else ("target", "test")
    found = {split: find_split(config, directory, split, current) for split in splits}
    if cheap is not None:
        assert config.cascade is not None
        found = {"pool": cheap[1].times(config.cascade.share), **found}
    whole = found["pool"] if cheap is None else cheap[1]
    reads = featurizer_reads(config.features.featurizer)
    shape = None if reads == "records" and config.tune is None else model_shape(config.model)
    checkpoints = _checkpoints(config, directory, whole.work.rows) if reads in WARMED else 1
    rates = Rates()
    estimated = costs(config, shape, machine, found, checkpoints, rates, whole)
    recorded = directory.read()["steps"]
    steps = tuple(
        _planned(step, config, states[step.name], estimated.get(step.name), machine, found, checkpoints, recorded)
        for step in STEPS
        if step.name in estimated or step.section != "cascade"
    )
    if cheap is not None:
        steps = tuple(_with_cheap(step, cheap[0]) if step.name == "cascade" else step for step in steps)
    features = estimated["featurize"]
    memory = None if shape is None or reads == "records" else _memory(config, shape, machine, found["pool"])
    seconds = features.worker_seconds
    parts = {
        "compute": (seconds or 0.0) / min(machine.workers, features.units),
        "driver": features.driver_seconds,
        "store": (features.bytes or 0.0) / rates.store_bytes,
        "selection": estimated["select"].driver_seconds,
    }
    notes = _notes(config, shape, machine, {**found, "pool": whole}, memory)
    made = Plan(
        steps,
        machine.device.name,
        machine.workers,
        machine.rate,
        memory,
        features.units,
        None if seconds is None else arithmetic.worth_workers(seconds, features.startup, features.units),
        None if seconds is None else arithmetic.saturating_workers(seconds, features.driver_seconds),
        "unknown" if seconds is None else arithmetic.limit(parts),
        (*notes, *_epsilon(config, directory, reads, checkpoints)),
        _validation(config, shape, machine, found, recorded.get("validate", {})),
    )
    return made, found["pool"]


def _with_cheap(step: PlannedStep, cheap: Plan) -> PlannedStep:
    """Return the step "cascade" with what the steps of the cheap pass take together."""
    parts = list(itertools.takewhile(lambda one: one.name != "tune", cheap.steps))
    features = next(one for one in parts if one.name == "featurize")
    numbers = ("operations", "worker_hours", "wall_seconds", "bytes")
    made = [one for one in parts if any(getattr(one, name) is not None for name in numbers)]
    sums = {name: _sum([getattr(one, name) for one in made]) for name in numbers}
    return replace(step, rows=features.rows, tokens=features.tokens, **sums)


def _sum(values: Sequence[float | None]) -> float | None:
    """Return the sum, None where a number is unknown."""
    known = [value for value in values if value is not None]
    return sum(known) if len(known) == len(values) else None


def _checkpoints(config: Config, directory: RunDirectory, rows: int) -> int:
    manifest = read_manifest(directory.warmup)
    if manifest is not None:
        return int(manifest["checkpoints"])
    return trained_checkpoints(config, rows)


def _planned(
    step: Step,
    config: Config,
    state: str,
    cost: StepCost | None,
    machine: Machine,
    found: Mapping[str, Found],
    checkpoints: int,
    recorded: Mapping[str, Any],
) -> PlannedStep:
    name, actual = step.name, recorded.get(step.name, {})
    seconds = float(actual["seconds"]) if state == "done" and "seconds" in actual else None
    planned = PlannedStep(name, state, step.describe(config), actual_seconds=seconds)
    if cost is None or any(one.uncounted for one in found.values()):
        return planned
    pool, target, test = (found[split].work for split in ("pool", "target", "test"))
    work = {
        "data": pool.plus(target).plus(test),
        "featurize": pool.plus(target).times(checkpoints),
        "score": pool,
        "select": pool,
    }.get(name)
    return replace(
        planned,
        rows=None if work is None else work.rows,
        tokens=work.tokens if work is not None and name in ("data", "featurize") else None,
        operations=cost.operations,
        worker_hours=None if cost.worker_seconds is None else cost.worker_seconds / 3600,
        wall_seconds=cost.seconds(machine.workers),
        bytes=cost.bytes,
    )


def _validation(
    config: Config,
    shape: ModelShape | None,
    machine: Machine,
    found: Mapping[str, Found],
    actual: Mapping[str, Any],
) -> PlannedStep:
    """Return what the experiments of the section `validate` would take, all of their retrainings done anew."""
    experiments = sizes(config, found["pool"].work.rows)
    parts = [f"{name} {size.retrainings} retrainings" for name, size in experiments.items()]
    count = sum(size.retrainings for size in experiments.values())
    judged = found["target"].work.plus(found["test"].work)
    passes = sum(size.retrainings * size.rows for size in experiments.values()) / max(1, found["pool"].work.rows)
    cost = retraining_cost(config, shape, machine, found["pool"].work.times(passes), judged, count)
    done = actual.get("status") == "done"
    return PlannedStep(
        "validate",
        f"done: {', '.join(actual.get('experiments', ()))}" if done else "on its own",
        f"{', '.join(parts)}, seeds {', '.join(map(str, config.validation.seeds))}",
        operations=cost.operations,
        worker_hours=None if cost.worker_seconds is None else cost.worker_seconds / 3600,
        wall_seconds=cost.seconds(machine.workers),
        bytes=cost.bytes,
        actual_seconds=float(actual["seconds"]) if done and "seconds" in actual else None,
    )


def _memory(config: Config, shape: ModelShape, machine: Machine, pool: Found) -> float:
    share = config.features.layers_of(shape.layers) / shape.layers
    shape = replace(shape, outputs=math.ceil(share * shape.outputs))  # below those layers nothing is kept
    item = arithmetic.ITEM_BYTES[config.model.dtype]
    weights = 0.5 * shape.body if config.model.quantization != "none" else float(item * shape.parameters)
    budget = config.features.token_budget
    if budget == "auto":
        budget = max(CPU_BATCH_TOKENS, config.data.max_tokens)
        if machine.device.memory:
            # As resolve_token_budget: 0.7 of the memory, of which weights take their part.
            room = 0.7 * machine.device.memory - weights
            budget = max(config.data.max_tokens, min(GPU_BATCH_TOKENS, int(room / arithmetic.token_bytes(shape, item))))
    D, rows, work = config.features.projector.dimension, config.features.rows_per_shard, pool.work
    if work.rows:  # no batch holds more than a shard
        budget = min(budget, max(config.data.max_tokens, -(-work.tokens * min(rows, work.rows) // work.rows)))
    needed = arithmetic.worker_memory(shape, weights, item, budget, D, rows)
    if machine.device.memory:  # it is what is short, not that of the process beside it
        return needed
    from influray.model.packed_linear import copies_bytes

    copies = copies_bytes((shape.body + shape.head) * item) if config.model.dtype == "float32" else 0
    return arithmetic.PROCESS_BYTES + needed + copies


def _epsilon(config: Config, directory: RunDirectory, reads: str, checkpoints: int) -> list[str]:
    """Return the advice on epsilon where features are there, or some of them, and the next ones would be alike."""
    if reads != "checkpoints" or config.features.direction == "sgd":
        return []
    shares = stored_shares(directory, checkpoints)
    return [epsilon_text(shares, config)] if mostly_epsilon(shares) else []


def _notes(
    config: Config, shape: ModelShape | None, machine: Machine, found: Mapping[str, Found], memory: float | None
) -> list[str]:
    notes = []
    if not found["pool"].exact:
        notes.append("rows and tokens are estimated from the first rows of the files; `influray run` counts them")
    for number, selector in enumerate(config.selectors):
        if isinstance(selector.budget, int) and 0 < found["pool"].work.rows < selector.budget:
            notes.append(
                f"selectors.{number}.budget: {selector.budget:,} examples of a pool of some {found['pool'].work.rows:,}"
            )
        if isinstance(selector.budget, AutoBudget):
            most = selector.budget.most
            most = f"{most:,} examples" if isinstance(most, int) else f"{most:g} of the pool"
            notes.append(
                f"selectors.{number}.budget: chooses itself once there are scores; reckoned at the most that it may "
                f"be, {most}"
            )
    for split, one in found.items():
        notes += [
            f"{entry} ({split}): its rows are unknown (offline, no answer, or it does not say), so what the steps "
            "take is unknown too"
            for entry in one.uncounted
        ]
    if shape is None and featurizer_reads(config.features.featurizer) != "records":
        notes.append(f"{config.model.base} is not on this machine, so what its passes take is unknown")
    if machine.device.name == "CPU":
        notes.append(f"a worker's rate is {machine.efficiency:.0%} of a matrix product measured here")
    else:
        notes.append(
            f"a worker's rate is {machine.efficiency:.0%}, assumed, of the maker's {machine.device.name} figure"
        )
    if memory is not None and machine.device.memory and memory > machine.device.memory:
        notes.append(
            f"a worker needs {memory / 1e9:.0f} GB and a {machine.device.name} has {machine.device.memory / 1e9:.0f}; "
            "set resources.device_map: auto with more gpus_per_worker, or model.quantization: nf4"
        )
    return notes
