"""What every actor does to its process first: threads, GPUs and the log. Imports no torch."""

from __future__ import annotations

import contextlib
import functools
import gc
import importlib
import logging
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import ray
import threadpoolctl

from influray.plugins import permit, permitted
from influray.progress import LOG_FORMAT, ShownFormatter
from influray.store.mirror import flush, follow, local

logger = logging.getLogger(__name__)

LOG_NAME = "influray worker"


def prepare_process(logs: str | Path, threads: int) -> str:
    """Hold the process to its threads and GPUs, log to a file of its own in `logs`, and return its name."""
    if not ray.get_gpu_ids():
        # Ray no longer hides GPUs from an actor that asked for none; CUDA reads this when it is first used.
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
    os.environ["CUBLAS_WORKSPACE_CONFIG"] = ":4096:8"  # without it cuBLAS does not repeat its sums
    os.environ["FLASH_ATTENTION_DETERMINISTIC"] = "1"  # nor the flash_attn package those of its backward
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    # Not through OMP_NUM_THREADS: Ray imports numpy before an actor's constructor runs, and a runtime_env costs a
    # process that was not started in advance (1.7 s against 0.4 s, on 2 cores).
    threadpoolctl.threadpool_limits(threads)
    logs = local(logs)
    logs.mkdir(parents=True, exist_ok=True)
    log = logs / f"worker-{process_name()}.log"
    follow(log)
    handler = logging.FileHandler(log, encoding="utf-8")
    handler.setFormatter(ShownFormatter(LOG_FORMAT))
    handler.name = LOG_NAME
    root = logging.getLogger()
    for earlier in [one for one in root.handlers if one.name == LOG_NAME]:  # a process that has had other tasks
        root.removeHandler(earlier)
        earlier.close()
    root.addHandler(handler)
    logging.getLogger("influray").setLevel(logging.INFO)
    logger.info("%s is up, %d threads", process_name(), threads)
    flush()  # a worker may be gone before its log is uploaded for the first time
    return process_name()


@functools.lru_cache(maxsize=1)
def once(token: str, make: Callable[..., Any], *arguments: Any) -> Any:
    """Return `make(*arguments)`, made once for all tasks of a token that come to this process one after the other."""
    return make(*arguments)


def inheriting(worker: type[Any]) -> type[Any]:
    """Return a class of actors whose processes may import the plug-ins that this process may."""
    names = permitted()

    class Inheriting(worker):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            permit(names)
            super().__init__(*arguments, **options)

    Inheriting.__name__, Inheriting.__qualname__ = worker.__name__, worker.__qualname__
    return Inheriting


def import_large(*modules: str) -> None:
    """Import modules that bring thousands of others. Collections of garbage would be a sixth of the time (4.1 s)."""
    collected = gc.isenabled()
    gc.disable()
    try:
        for module in modules:
            importlib.import_module(module)
    finally:
        if collected:
            gc.enable()


def process_name() -> str:
    """Return host and process id, which name a worker in logs and metrics."""
    return f"{socket.gethostname()}-{os.getpid()}"


@contextlib.contextmanager
def logged(work: object) -> Iterator[None]:
    """Log that `work` begins, and with its traceback that it failed: the driver keeps the message alone."""
    logger.info("%s begins", work)
    try:
        yield
    except Exception:
        logger.exception("%s failed", work)
        flush()
        raise
