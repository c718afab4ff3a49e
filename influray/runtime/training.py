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
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import ray

from influray.runtime.retries import RayError, SideBySide, loss_of, need_memory
from influray.runtime.tasks import PoolEvent
from influray.runtime.training_worker import (
    EvaluationJob,
    Job,
    TrainingJob,
    attempt,
    committed,
    manifest_of,
    working_in,
)
from influray.runtime.watch import end_actor
from influray.store.mirror import local, location_of, remove_folder

__all__ = ["EvaluationJob", "Layout", "TrainingJob", "plan_layout", "run_evaluation", "run_training"]

logger = logging.getLogger(__name__)


Listener = Callable[[PoolEvent], None]


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


def run_training(
    jobs: TrainingJob | Sequence[TrainingJob], resources: Resources, on_event: Listener = lambda event: None
) -> list[dict[str, Any]]:
    """Carry out trainings and return their manifests, in order; those that are committed already are not repeated.

    Ray must be initialised. `resources` is what cluster.resolve_resources returns.

    Raises:
        ConfigError, DataError, ArtifactMismatch: what the user can mend, as it was raised in the worker.
        TooLittleMemory: a job's worker was killed for memory `max_attempts` times, with no other beside it.
        RuntimeError: a job's worker was lost `max_attempts` times.
    """
    jobs = [jobs] if isinstance(jobs, TrainingJob) else list(jobs)
    gpus = ray.cluster_resources().get("GPU", 0.0)
    if all(job.imports for job in jobs):
        layout = _single_process(len(jobs), resources, gpus)
        return _run(jobs, resources, layout, on_event, through_train=False)
    layout = plan_layout(len(jobs), resources, gpus)
    return _run(jobs, resources, layout, on_event, through_train=layout.ranks > 1)


def run_evaluation(
    jobs: EvaluationJob | Sequence[EvaluationJob], resources: Resources, on_event: Listener = lambda event: None
) -> list[dict[str, Any]]:
    """Carry out evaluations, one process each, and return their manifests, in order. Raises as `run_training`."""
    jobs = [jobs] if isinstance(jobs, EvaluationJob) else list(jobs)
    layout = _single_process(len(jobs), resources, ray.cluster_resources().get("GPU", 0.0))
    return _run(jobs, resources, layout, on_event, through_train=False)


def _run(
    jobs: Sequence[Job], resources: Resources, layout: Layout, on_event: Listener, through_train: bool
) -> list[dict[str, Any]]:
    outs = [str(local(job.out).resolve()) for job in jobs]
    assert len(set(outs)) == len(outs), "two jobs write to one place"
    manifests = {index: found for index, job in enumerate(jobs) if (found := committed(job)) is not None}
    waiting = [index for index in range(len(jobs)) if index not in manifests]
    if waiting:
        logger.info("%d of %d jobs to do, %d at a time", len(waiting), len(jobs), layout.slots)
        todo = [jobs[index] for index in waiting]
        if through_train:
            done = _through_train(todo, resources, layout)
        else:
            done = _Slots(todo, resources, layout, on_event).run()
        manifests.update(zip(waiting, done, strict=True))
    return [manifests[index] for index in range(len(jobs))]


def _through_train(jobs: Sequence[Job], resources: Resources, layout: Layout) -> list[dict[str, Any]]:
    from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
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
                with contextlib.suppress(RayError):
                    ray.get(trainer.controller.abort.remote(), timeout=30)
            raise
        except WorkerGroupError as error:
            given_up = _given_up(jobs, error, error.worker_failures.values(), resources.max_attempts)
            if given_up is error:
                raise
            raise given_up from error
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


class _Slots:
    """Jobs handed out to one actor per slot. A lost actor is replaced and its job goes first again.

    Where actors are killed for memory there are fewer slots from then on.
    """

    def __init__(self, jobs: Sequence[Job], resources: Resources, layout: Layout, on_event: Listener) -> None:
        self._jobs, self._resources, self._layout, self._on_event = jobs, resources, layout, on_event
        actor: Any = ray.remote(_Worker)
        self._actor = actor.options(
            num_cpus=resources.cpus_per_worker, num_gpus=layout.gpus, max_restarts=0, max_task_retries=0
        )
        self._queue = collections.deque(range(len(jobs)))
        self._side_by_side = SideBySide()
        self._lost: collections.Counter[int | None] = collections.Counter()  # job (None = while starting) -> times
        self._busy: dict[Any, tuple[Any, int | None, float]] = {}  # answer -> actor, job, since when

    def run(self) -> list[dict[str, Any]]:
        """Carry out the jobs and return their manifests, in order."""
        manifests: dict[int, dict[str, Any]] = {}
        try:
            while len(manifests) < len(self._jobs):
                self._staff(len(self._jobs) - len(manifests))
                (done,), _ = ray.wait(list(self._busy), num_returns=1)
                actor, index, since = self._busy.pop(done)
                try:
                    outcome = ray.get(done)
                except RayError as error:
                    end_actor(actor)
                    self._again(index, since, error)
                    continue
                if index is not None:
                    manifests[index] = manifest_of(outcome)
                    logger.info("%d of %d jobs done: %s", len(manifests), len(self._jobs), self._jobs[index].out)
                if self._queue:
                    following = self._queue.popleft()
                    self._busy[actor.run.remote(self._jobs[following])] = (actor, following, time.monotonic())
                else:
                    end_actor(actor)
        finally:
            for actor, _, _ in self._busy.values():
                end_actor(actor)
        return [manifests[index] for index in range(len(self._jobs))]

    def _staff(self, left: int) -> None:
        """Start actors up to the slots, or to the jobs that are left where these are fewer."""
        while len(self._busy) < self._side_by_side.limit(min(self._layout.slots, left)):
            actor = self._actor.remote(os.getcwd(), self._layout.gpus, self._resources.threads_per_worker)
            self._busy[actor.ready.remote()] = (actor, None, time.monotonic())

    def _again(self, index: int | None, since: float, error: RayError) -> None:
        """Put the job of a lost actor back, or raise where it was lost too often."""
        what = "a worker that was starting" if index is None else str(self._jobs[index].out)
        loss = loss_of(error)
        if loss.cause is not None:
            raise error  # of the job itself, with the worker's traceback
        if index is not None:
            self._queue.appendleft(index)
        logger.warning("%s: its worker was lost, trying again: %s", what, loss.reason)
        self._on_event(PoolEvent("retry", f"{what}: {loss.reason}"))
        if loss.memory:
            alone = self._side_by_side.killed(since, len(self._busy))
            left = self._side_by_side.limit(self._layout.slots)
            logger.warning("%s", self._side_by_side.told())
            self._on_event(PoolEvent("memory", self._side_by_side.told(), side_by_side=left))
            if not alone:
                return
        self._lost[index] += 1
        if self._lost[index] >= self._resources.max_attempts:
            if loss.memory:
                raise need_memory(what, self._side_by_side.kills, _lower(self._jobs), loss.reason) from error
            raise RuntimeError(f"{what}: its worker was lost {self._lost[index]} times: {loss.reason}") from error


def _given_up(jobs: Sequence[Job], error: Exception, failures: Iterable[Exception], attempts: int) -> Exception:
    """Return what to raise where the ranks of a Train run were lost in every attempt; a bug stays what it is."""
    losses = [loss_of(failure) for failure in failures if isinstance(failure, RayError)]
    if not losses or any(loss.cause for loss in losses):
        return error
    what, reason = str(jobs[0].out), "; ".join(loss.reason for loss in losses)
    if any(loss.memory for loss in losses):
        return need_memory(what, attempts, _lower(jobs), reason)
    return RuntimeError(f"{what}: its workers were lost {attempts} times: {reason}")


def _lower(jobs: Sequence[Job]) -> str:
    """Return what of the config makes a job need less memory."""
    job = jobs[0]
    if isinstance(job, EvaluationJob):
        return f"evaluation.token_budget (now {job.parsed.evaluation.token_budget})"
    return f"{job.kind}.device_batch_size (now {job.section.device_batch_size})"


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
