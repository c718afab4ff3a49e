"""The Ray cluster of a run: a private one on this machine, or one that is there already.

A private cluster listens behind a random token, keeps its files in a folder of its own and ends with the run. A cluster
that this process did not start is never shut down.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import secrets
import signal
import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from influray.config import ResourcesConfig
from influray.interrupts import interrupt_between, interrupt_on_sigterm, restore_sigterm
from influray.protocols import USER_ERRORS, ConfigError
from influray.runtime.replaced import replaced
from influray.runtime.scratch import ScratchFolder
from influray.runtime.startup import connecting, require_ray, scratch_parent, starting
from influray.runtime.watch import watched

logger = logging.getLogger(__name__)

NAMESPACE = "influray"
OBJECT_STORE_BYTES = 80 * 2**20  # shards go through files; Ray refuses less than 75 MiB
CONNECT_SECONDS = 10.0


@dataclass(frozen=True, slots=True)
class ClusterInfo:
    """What the cluster offers at this moment; one that grows may offer more later."""

    cpus: float
    gpus: float
    nodes: int
    address: str
    owned: bool  # started by this process, and ended by it


@dataclass(frozen=True, slots=True)
class ResolvedResources:
    """`ResourcesConfig` with every `auto` made a number."""

    workers: int
    cpus_per_worker: float
    gpus_per_worker: float
    threads_per_worker: int
    training_workers: int
    max_attempts: int
    follows: bool = False  # `workers` is how many a cluster of others has room for now; it is asked again meanwhile

    def room(self, gpus: float) -> int:
        """Return how many workers of `gpus` GPUs each the cluster has room for now, 1 at least."""
        import ray

        each = {"CPU": self.cpus_per_worker, "GPU": gpus}
        nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
        return max(1, sum(room_on(node, each) for node in nodes))


@contextlib.contextmanager
def connect(resources: ResourcesConfig, address: str | None = None) -> Iterator[ClusterInfo]:
    """Be connected to a Ray cluster while the block runs, with SIGTERM turned into KeyboardInterrupt.

    In this order: the connection this process already has; `address`; the cluster this process is a job of; a new
    private one. A connection made here is closed at the end, one found is left as it is.

    Raises:
        ConfigError: nothing answers at `address`, it is not of the form host:port or "auto", or this process is
            connected to another cluster.
    """
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        _require_same(address)
        with interrupt_on_sigterm():
            yield _describe(owned=False)
        return
    with contextlib.ExitStack() as stack:
        stack.enter_context(interrupt_on_sigterm())  # until Ray is there; what it installs itself leaves no message
        # Ray's own variable, set by `ray job submit` for its entrypoint; Ray would prefer it to a cluster of ours.
        named = "--address" if address else "RAY_ADDRESS"
        address = address or os.environ.get("RAY_ADDRESS")
        stack.enter_context(_attached(address, named) if address else _private_cluster())
        info = _describe(owned=not address)
        kind = "a private Ray" if info.owned else f"Ray at {info.address}"
        logger.info("%s: %d node(s), %g CPUs, %g GPUs", kind, info.nodes, info.cpus, info.gpus)
        # After ray.init, which installs a handler of its own.
        stack.enter_context(interrupt_on_sigterm())
        yield info


def resolve_resources(resources: ResourcesConfig, cluster: ClusterInfo) -> ResolvedResources:
    """Return how many workers there are and what each may use; `auto` becomes a number here and nowhere else.

    On a private cluster as many workers as asked for share its CPUs, since there is nobody to wait for. On another
    one workers beyond its room stay pending, which is what makes it grow if it can.

    Raises:
        ConfigError: GPUs are asked for that a private cluster does not have.
    """
    gpus_each = resources.gpus_per_worker
    if gpus_each == "auto":
        gpus_each = 1.0 if cluster.gpus >= 1 else 0.0
    if gpus_each < 0 or (gpus_each > 1 and gpus_each != int(gpus_each)):
        raise ConfigError(
            f"resources.gpus_per_worker: found {gpus_each:g}; a worker takes a whole number of GPUs or a part of one"
        )
    if cluster.owned and gpus_each > cluster.gpus:
        raise ConfigError(
            f"resources.gpus_per_worker: a worker asks for {gpus_each:g}, and this machine has {cluster.gpus:g} "
            "that PyTorch and Ray can use; take auto, or --address of a cluster that has them"
        )
    workers = resources.workers
    follows = workers == "auto" and not cluster.owned
    if workers == "auto":
        room = cluster.gpus / gpus_each if gpus_each else cluster.cpus / resources.cpus_per_worker
        workers = max(1, math.floor(room + 1e-9))
    if cluster.owned and gpus_each and workers * gpus_each > cluster.gpus:
        raise ConfigError(
            f"resources.workers: {workers} workers of {gpus_each:g} GPUs each, and this machine has {cluster.gpus:g}; "
            "lower workers or gpus_per_worker (a part of one, such as 0.5, lets workers share)"
        )
    cpus_each = resources.cpus_per_worker
    if cluster.owned:
        cpus_each = min(cpus_each, math.floor(cluster.cpus / workers * 1e4) / 1e4)  # Ray counts in 1/10000
    elif workers * cpus_each > cluster.cpus or workers * gpus_each > cluster.gpus:
        logger.warning(
            "%d workers of %g CPUs and %g GPUs each are more than the cluster has now (%g, %g); some wait for room",
            *(workers, cpus_each, gpus_each, cluster.cpus, cluster.gpus),
        )
    training = resources.training_workers
    return ResolvedResources(
        workers=workers,
        cpus_per_worker=cpus_each,
        gpus_per_worker=float(gpus_each),
        threads_per_worker=resources.threads_per_worker,
        training_workers=(max(1, int(cluster.gpus)) if gpus_each else 1) if training == "auto" else training,
        max_attempts=resources.max_attempts,
        follows=follows,
    )


def one_core_each(resources: ResourcesConfig, resolved: ResolvedResources, cluster: ClusterInfo) -> ResolvedResources:
    """Return the same resources cut into workers that take a core and no GPU each: of `auto`, all cores there are."""
    cores = cluster.cpus if resources.workers == "auto" else resolved.workers * resolved.cpus_per_worker
    workers = max(1 if resources.workers == "auto" else resolved.workers, math.floor(cores + 1e-9))
    each = min(1.0, resolved.cpus_per_worker)
    return replace(resolved, workers=workers, cpus_per_worker=each, gpus_per_worker=0.0, threads_per_worker=1)


@contextlib.contextmanager
def _private_cluster() -> Iterator[None]:
    # Ray's ports listen on every interface whatever address it is given (measured with 2.60), and who reaches them can
    # run code: hence a token, made here so that none is written to the home folder. Ray 2.59 and later ask for one by
    # themselves; for older ones the mode must be in the environment before Ray is imported.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    if "ray" not in sys.modules:
        os.environ.setdefault("RAY_AUTH_MODE", "token")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    # Ray's own 15 is for workers beside a user's programs; here they are what she waits for, and starve beside others.
    os.environ.setdefault("RAY_worker_niceness", "0")
    import ray

    folder, kept = ScratchFolder(Path(scratch_parent())), False
    before = signal.getsignal(signal.SIGTERM)
    try:
        # Ray loses sight of processes that it is just starting; blocked signals they would inherit.
        with interrupt_between() as check_interrupt, _no_handlers(), starting(str(folder.path)):
            ray.init(
                address="local",
                namespace=NAMESPACE,
                include_dashboard=False,
                log_to_driver=False,
                logging_level=logging.ERROR,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=str(folder.path),
            )
            check_interrupt()
        with watched() as leave:
            try:
                yield
            finally:
                leave()
                ray.shutdown()
    except BaseException as error:
        kept = isinstance(error, Exception) and not isinstance(error, USER_ERRORS)
        raise
    finally:
        ray.shutdown()
        restore_sigterm(before)
        folder.close(keep=kept)


@contextlib.contextmanager
def _attached(address: str, named: str) -> Iterator[None]:
    if "://" in address:
        raise ConfigError(
            f"{named}: found {address!r}; give host:port of the cluster's head, or submit the run as a job "
            "(ray job submit), which then finds the cluster by itself"
        )
    if address != "auto":
        _require_listener(address, named)
    import ray

    before = signal.getsignal(signal.SIGTERM)
    # Blocked in this thread, a signal would go to another one, and Python handles it here all the same.
    with connecting(address, named), interrupt_between() as check_interrupt, _no_handlers():
        ray.init(address=address, namespace=NAMESPACE, log_to_driver=False, logging_level=logging.ERROR)
        check_interrupt()
    try:
        yield
    finally:
        ray.shutdown()  # of the connection; the cluster stays
        restore_sigterm(before)


def _require_same(address: str | None) -> None:
    """Raise ConfigError where `address` names another cluster than the one this process is connected to."""
    if not address or address == "auto":
        return
    _require_listener(address, "--address")
    import ray

    def place(text: str) -> tuple[str, str]:
        host, _, port = text.rpartition(":")
        return socket.gethostbyname(host.strip("[]")), port

    found = ray.get_runtime_context().gcs_address
    if place(address) != place(found):
        raise ConfigError(f"--address: this process is connected to Ray at {found} already, not to {address!r}")


def _no_handlers() -> contextlib.AbstractContextManager[None]:
    """Keep Ray from handlers of SIGTERM of its own, which end the process at whatever statement it is."""
    from ray._private import utils

    return replaced(utils.__dict__, "set_sigterm_handler", lambda handler: None)


def _require_listener(address: str, named: str) -> None:
    """Raise ConfigError where nobody listens; Ray itself would try for minutes."""
    host, colon, port = address.rpartition(":")
    if not colon or not port.isdigit():
        raise ConfigError(f'{named}: found {address!r}; it must be host:port of the cluster\'s head, or "auto"')
    try:
        connection = socket.create_connection((host.strip("[]"), int(port)), timeout=CONNECT_SECONDS)
    except (OSError, OverflowError) as error:
        raise ConfigError(f"{named}: no Ray cluster answers at {address!r}: {error}") from error
    with connection:
        require_ray(connection, address, named)


def _describe(owned: bool) -> ClusterInfo:
    import ray

    total = ray.cluster_resources()
    return ClusterInfo(
        cpus=float(total.get("CPU", 0)),
        gpus=float(total.get("GPU", 0)),
        nodes=sum(bool(node["Alive"]) for node in ray.nodes()),
        address=ray.get_runtime_context().gcs_address,
        owned=owned,
    )


def room_on(node: Mapping[str, float], each: Mapping[str, float]) -> int:
    """Return how many workers fit on one node; what a worker takes none of does not count."""
    return min(math.floor(node.get(kind, 0.0) / amount + 1e-9) for kind, amount in each.items() if amount)
