"""Fine-tunings and evaluations on Ray: one job over many ranks, or many jobs at a time.

A training over several ranks, such as the warmup where there are GPUs, is one Ray Train run, data-parallel. Jobs of
one process go to plain actors, one per slot, each taking job after job: a Train run starts six processes beside its
workers (13 s of CPU), and nothing of them is needed by one rank. Where there are fewer jobs than GPUs they share one
Train run, one after the other over all ranks. Either way a lost worker costs the time since its last checkpoint.
"""

from __future__ import annotations

import collections
import contextlib
import logging
import os
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray
from ray.exceptions import GetTimeoutError, RayActorError

from influray.runtime.training_worker import (
    EvaluationJob,
    Job,
    TrainingJob,
    attempt,
    committed,
    manifest_of,
    working_in,
)
from influray.store.mirror import local, location_of, remove_folder

__all__ = ["EvaluationJob", "Layout", "TrainingJob", "plan_layout", "run_evaluation", "run_training"]

logger = logging.getLogger(__name__)


class Resources(Protocol):
    """What of the resolved resources is used here."""

    @property
    def workers(self) -> int: ...
    @property
    def cpus_per_worker(self) -> float: ...
    @property
    def gpus_per_worker(self) -> float: ...
    @property
    def threads_per_worker(self) -> int: ...
    @property
    def training_workers(self) -> int: ...
    @property
    def max_attempts(self) -> int: ...


@dataclass(frozen=True, slots=True)
class Layout:
    """How jobs share the cluster: `ranks` processes a job, `slots` jobs at a time, `gpus` for each process."""

    ranks: int
    slots: int
    gpus: float


def plan_layout(jobs: int, resources: Resources, cluster_gpus: float) -> Layout:
    """Return the layout of so many jobs. It follows from all jobs of a step, also those that are done already, so
    that a resumed step trains the rest with as many ranks."""
    single = _single_process(jobs, resources, cluster_gpus)
    # A process of several GPUs spreads its model over them by device_map; ranks of a node would see each other's.
    ranks = resources.training_workers if single.gpus <= 1 else 1
    return single if ranks == 1 or jobs > ranks else Layout(ranks, 1, single.gpus)


def _single_process(jobs: int, resources: Resources, cluster_gpus: float) -> Layout:
    # A process that trains takes whole GPUs, also where several feature workers share one.
    gpus = max(1.0, resources.gpus_per_worker) if resources.gpus_per_worker else 0.0
    room = max(1, int(cluster_gpus // gpus)) if gpus else resources.workers
    return Layout(1, min(jobs, room), gpus)


def run_training(jobs: TrainingJob | Sequence[TrainingJob], resources: Resources) -> list[dict[str, Any]]:
    """Carry out trainings and return their manifests, in order; those that are committed already are not repeated.

    Ray must be initialised. `resources` is what cluster.resolve_resources returns.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend, as it was raised in the worker.
        RuntimeError: a job's worker was lost `max_attempts` times.
    """
    jobs = [jobs] if isinstance(jobs, TrainingJob) else list(jobs)
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if all(job.imports for job in jobs):
        return _run(jobs, resources, _single_process(len(jobs), resources, gpus), through_train=False)
    layout = plan_layout(len(jobs), resources, gpus)
    return _run(jobs, resources, layout, through_train=layout.ranks > 1)


def run_evaluation(jobs: EvaluationJob | Sequence[EvaluationJob], resources: Resources) -> list[dict[str, Any]]:
    """Carry out evaluations, one process each, and return their manifests, in order. Raises as `run_training`."""
    jobs = [jobs] if isinstance(jobs, EvaluationJob) else list(jobs)
    layout = _single_process(len(jobs), resources, ray.cluster_resources().get("GPU", 0.0))
    return _run(jobs, resources, layout, through_train=False)


def _run(jobs: Sequence[Job], resources: Resources, layout: Layout, through_train: bool) -> list[dict[str, Any]]:
    outs = [str(local(job.out).resolve()) for job in jobs]
    assert len(set(outs)) == len(outs), "two jobs write to one place"
    manifests = {index: found for index, job in enumerate(jobs) if (found := committed(job)) is not None}
    waiting = [index for index in range(len(jobs)) if index not in manifests]
    if waiting:
        logger.info("%d of %d jobs to do, %d at a time", len(waiting), len(jobs), layout.slots)
        todo = [jobs[index] for index in waiting]
        done = _through_train(todo, resources, layout) if through_train else _through_actors(todo, resources, layout)
        manifests.update(zip(waiting, done, strict=True))
    return [manifests[index] for index in range(len(jobs))]


def _through_train(jobs: Sequence[Job], resources: Resources, layout: Layout) -> list[dict[str, Any]]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class InterruptibleTrainer(TorchTrainer):
        """Leaves Ctrl-C to the driver: Ray's handler stays installed after the run and may end it as a success."""

        controller: Any = None

        def _register_sigint_handler(self, controller: Any) -> None:
            self.controller = controller

    storage = local(jobs[0].out).resolve().parent / f".ray-train-{uuid.uuid4().hex[:8]}"
    per_rank = {"CPU": resources.cpus_per_worker, **({"GPU": layout.gpus} if layout.gpus else {})}
    with _unchanged_folder():
        trainer = InterruptibleTrainer(
            _train_loop,
            train_loop_config={"jobs": list(jobs), "threads": resources.threads_per_worker, "folder": os.getcwd()},
            scaling_config=ScalingConfig(
                num_workers=layout.ranks, use_gpu=layout.gpus > 0, resources_per_worker=per_rank
            ),
            run_config=RunConfig(
                name="train",
                **_storage(storage),
                failure_config=FailureConfig(max_failures=resources.max_attempts - 1),
            ),
        )
        try:
            outcomes: Any = trainer.fit().return_value
        except KeyboardInterrupt:
            if trainer.controller is not None:
                # Aborting ends the controller itself, in the middle of this call.
                with contextlib.suppress(RayActorError, GetTimeoutError):
                    ray.get(trainer.controller.abort.remote(), timeout=30)
            raise
        finally:
            remove_folder(storage)
    manifests = [manifest_of(outcome) for outcome in outcomes]  # the first error, where there is one, is the last
    assert len(manifests) == len(jobs)
    return manifests


def _train_loop(config: dict[str, Any]) -> list[dict[str, Any]]:
    """What every rank of a Train run does."""
    from ray.train.torch import get_device

    outcomes = []
    with working_in(config["folder"]):
        for job in config["jobs"]:
            outcomes.append(attempt(job, get_device(), _device_map(job), config["threads"]))
            if "error" in outcomes[-1]:
                break  # the same on every rank: finetune agrees on its errors before it raises them
    return outcomes


class _Worker:
    """One process that carries out jobs, one after the other."""

    def __init__(self, folder: str, gpus: float, threads: int) -> None:
        self.folder = folder
        self.device = "cuda" if gpus else "cpu"
        self.threads = threads

    def ready(self) -> None:
        """Answer when the process is up."""

    def run(self, job: Job) -> dict[str, Any]:
        with working_in(self.folder):
            return attempt(job, self.device, _device_map(job), self.threads)


def _through_actors(jobs: Sequence[Job], resources: Resources, layout: Layout) -> list[dict[str, Any]]:
    """Hand jobs out to one actor per slot. A lost actor is replaced and its job goes first again."""
    actor_class: Any = ray.remote(_Worker)
    actor_class = actor_class.options(
        num_cpus=resources.cpus_per_worker, num_gpus=layout.gpus, max_restarts=0, max_task_retries=0
    )
    queue = collections.deque(range(len(jobs)))
    manifests: dict[int, dict[str, Any]] = {}
    lost: collections.Counter[int | None] = collections.Counter()  # job (None = while starting) -> times
    busy: dict[ray.ObjectRef, tuple[Any, int | None]] = {}

    def start() -> None:
        actor = actor_class.remote(os.getcwd(), layout.gpus, resources.threads_per_worker)
        busy[actor.ready.remote()] = (actor, None)

    try:
        for _ in range(min(layout.slots, len(jobs))):
            start()
        while len(manifests) < len(jobs):
            (done,), _ = ray.wait(list(busy), num_returns=1)
            actor, index = busy.pop(done)
            try:
                outcome = ray.get(done)
            except RayActorError as error:
                lost[index] += 1
                what = "a worker that was starting" if index is None else jobs[index].out
                if lost[index] >= resources.max_attempts:
                    raise RuntimeError(f"{what}: its worker was lost {lost[index]} times: {error}") from error
                logger.warning("%s: its worker was lost, trying again", what)
                ray.kill(actor)
                if index is not None:
                    queue.appendleft(index)
                start()
                continue
            if index is not None:
                manifests[index] = manifest_of(outcome)
                logger.info("%d of %d jobs done: %s", len(manifests), len(jobs), jobs[index].out)
            if queue:
                following = queue.popleft()
                busy[actor.run.remote(jobs[following])] = (actor, following)
            else:
                ray.kill(actor)
    finally:
        for actor, _ in busy.values():
            ray.kill(actor)
    return [manifests[index] for index in range(len(jobs))]


def _device_map(job: Job) -> str | None:
    return job.parsed.resources.device_map


def _storage(folder: Path) -> dict[str, Any]:
    """Return where Ray Train keeps its books: a folder, or a file system and a place on it."""
    location = location_of(folder)
    if location is None:
        return {"storage_path": str(folder)}
    # Sent to the workers without credentials, which each takes from its own environment.
    return {"storage_filesystem": location.filesystem, "storage_path": location.key(folder)}


@contextlib.contextmanager
def _unchanged_folder() -> Iterator[None]:
    """Keep Ray Train from moving its workers into a folder of its own, where relative paths would mean others."""
    name = "RAY_CHDIR_TO_TRIAL_DIR"
    before = os.environ.get(name)
    os.environ[name] = "0"
    try:
        yield
    finally:
        if before is None:
            del os.environ[name]
        else:
            os.environ[name] = before
