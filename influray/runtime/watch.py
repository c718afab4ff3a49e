"""Whether the processes of a private Ray cluster still live, looked at by a thread.

Ray itself takes 15 s to say that the raylet is gone, in an error that could be any lost actor's, and 60 s for its
control service (GCS), after which it ends the process from below Python. Both are children of this process, so that
their end is seen at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from typing import Any

from influray import interrupts
from influray.protocols import RunStopped
from influray.runtime.replaced import replaced

logger = logging.getLogger(__name__)

VITAL = ("raylet", "gcs_server")
LOOK_SECONDS = 0.25
GRACE_SECONDS = 12.0  # for the run to end in good order: without the control service Ray takes 7 s to shut down

_lost = threading.Event()


@contextlib.contextmanager
def watched() -> Iterator[Callable[[], None]]:
    """End the run with RunStopped as soon as a vital process of the cluster that this process has started is gone.

    Yields a function to call before the cluster is shut down: from then on its processes may end. Where one has ended
    before, the shutdown has GRACE_SECONDS, since a call into Ray may never return.
    """
    from ray._private import worker

    watch = _Watch(_vital())
    watch.start()
    try:
        # Ray prints what becomes of its processes, with pages of their logs, and log_to_driver=False does not reach
        # that: our own lines say it.
        with replaced(worker.__dict__, "print_to_stdstream", lambda *arguments, **options: None):
            yield watch.leaving.set
    except RunStopped:
        raise
    except BaseException as error:
        # Ray's own errors may be there sooner, and one that is raised within Ray may come out of it as another.
        if watch.reason is not None:
            raise watch.reason from error
        raise
    finally:
        watch.leaving.set()
        watch.left.set()
        _lost.clear()


def lost() -> bool:
    """Return whether the cluster that this process has started is gone: calls into Ray may not return any more."""
    return _lost.is_set()


def end(what: Any) -> None:
    """Kill an actor for good, or the task that a reference is of, where there is a cluster to do so."""
    import ray

    if not ray.is_initialized() or lost():
        return
    if isinstance(what, ray.ObjectRef):
        ray.cancel(what, force=True)
    else:
        ray.kill(what, no_restart=True)


class _Watch(threading.Thread):
    def __init__(self, processes: dict[str, Any]) -> None:
        super().__init__(daemon=True)
        self._processes = processes
        self.leaving, self.left = threading.Event(), threading.Event()
        self.reason: RunStopped | None = None

    def run(self) -> None:
        while not self.leaving.wait(LOOK_SECONDS):
            for name, process in self._processes.items():
                if process.poll() is not None:
                    self._stop(name, process)
                    return

    def _stop(self, name: str, process: Any) -> None:
        self.reason = RunStopped(
            f"Ray's {name} (process {process.pid}) has ended with status {process.returncode}, and the run with it; "
            "was it killed, for memory or from outside? What is committed stays: the same command goes on from there"
        )
        _lost.set()
        # Where the run is not the main thread's, Ray's own errors reach it.
        if interrupts.stop(self.reason) and not self.left.wait(GRACE_SECONDS):
            logger.error("influray: %s (exit 1)", self.reason)
            sys.stderr.flush()
            os._exit(1)


def _vital() -> dict[str, Any]:
    """Return name -> Popen of the processes without which nothing goes on."""
    from ray._private import worker  # there is no public way to them

    node = worker._global_node
    found = {} if node is None else node.all_processes
    return {kind: infos[0].process for kind, infos in found.items() if kind in VITAL and infos}
