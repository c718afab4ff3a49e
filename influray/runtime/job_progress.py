"""How far trainings and evaluations are: told by their processes every two seconds, read by the driver as often.

It goes through the key-value store of Ray's head, which every process of a cluster is connected to: an actor would be
one more process for each step, and files one more request to object storage. Both ends have a thread for it, so that a
training waits for nothing, and a job whose news do not arrive goes on as well.
"""

from __future__ import annotations

import contextlib
import json
import logging
import threading
import uuid
from collections.abc import Iterator
from dataclasses import asdict, replace

# The public ways from one process to another are actors and objects that somebody waits for.
from ray.experimental.internal_kv import _internal_kv_del, _internal_kv_get, _internal_kv_list, _internal_kv_put

from influray.job_status import JobStatus, OnJobs
from influray.runtime.retries import RayError
from influray.runtime.watch import lost

logger = logging.getLogger(__name__)

SECONDS = 2.0
NAMESPACE = b"influray"


class Teller:
    """What a job tells (see Tell), in its own process. Called after every step; what it costs is an assignment."""

    def __init__(self, name: str) -> None:
        self.status = JobStatus(name)

    def __call__(self, done: int, total: int, unit: str, loss: float | None = None, share: float | None = None) -> None:
        share = done / total if share is None else share
        before = self.status.before if self.status.total else share
        self.status = JobStatus(self.status.name, done, total, unit, loss, share, before)


@contextlib.contextmanager
def telling(address: str, name: str) -> Iterator[Teller]:
    """Yield what a job calls with how far it is; where it ends without an error, the driver is told so."""
    teller, stop = Teller(name), threading.Event()

    def tell() -> None:
        sent = teller.status
        while not stop.wait(SECONDS):
            if (status := teller.status) is not sent and not _put(address, status):
                return
            sent = status

    thread = threading.Thread(target=tell, daemon=True)
    thread.start()
    try:
        yield teller
        stop.set()
        thread.join(SECONDS)
        _put(address, replace(teller.status, finished=True))
    finally:
        stop.set()


def _put(address: str, status: JobStatus) -> bool:
    try:
        _internal_kv_put(address, json.dumps(asdict(status)), namespace=NAMESPACE)
    except RayError as error:
        logger.warning("%s: how far it is cannot be told: %s", status.name, error)
        return False
    return True


class JobBoard:
    """The driver's side: while the block runs, `on_jobs` hears every two seconds how far jobs are."""

    def __init__(self, on_jobs: OnJobs) -> None:
        self._on_jobs = on_jobs
        self._prefix = f"progress/{uuid.uuid4().hex}/"
        self._finished: set[bytes] = set()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)

    def address(self, number: int) -> str:
        """Return where the job of this number tells how far it is."""
        return f"{self._prefix}{number:06}"

    def __enter__(self) -> JobBoard:
        self._thread.start()
        return self

    def __exit__(self, *error: object) -> None:
        self._stop.set()
        self._thread.join(SECONDS)
        if not lost():
            with contextlib.suppress(RayError):  # a few hundred bytes, which end with the cluster
                _internal_kv_del(self._prefix, del_by_prefix=True, namespace=NAMESPACE)

    def _watch(self) -> None:
        while not self._stop.wait(SECONDS):
            try:
                self._on_jobs(*self.look())
            except RayError as error:
                logger.warning("how far the jobs are is not known: %s", error)
                return

    def look(self) -> tuple[int, list[JobStatus]]:
        """Return how many jobs are finished, and those that run, in the order of their numbers."""
        running = []
        for key in sorted(_internal_kv_list(self._prefix, namespace=NAMESPACE)):
            found = _internal_kv_get(key, namespace=NAMESPACE)
            status = JobStatus(**json.loads(found)) if found else None
            if status is not None and status.finished:
                self._finished.add(key)
                _internal_kv_del(key, namespace=NAMESPACE)
            elif status is not None:
                running.append(status)
        return len(self._finished), running
