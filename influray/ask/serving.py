"""influray serve: a run over HTTP, with engines of Ray Serve on a private cluster of this machine.

Engines hold the model and answer queries that came together in one batch. The HTTP application, with all that reads
files only, is served by this process, so that a page of rows never waits for a gradient.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import ipaddress
import logging
import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from influray.ask.admission import MOST, Admission, Busy
from influray.ask.query import Asked, QueryEngine
from influray.config import Config, parse_config
from influray.extras import install_command
from influray.plugins import permit, permitted
from influray.protocols import USER_ERRORS, ArtifactMismatch, ConfigError, DataError
from influray.runtime.cluster import connect, resolve_resources
from influray.runtime.retries import RayError, loss_of
from influray.store.run_directory import RunDirectory

logger = logging.getLogger(__name__)

APPLICATION, ENGINE = "influray", "Engine"
BATCH, BATCH_SECONDS = 32, 0.01  # most queries put together, and how long the first waits for others
ENGINE_SECONDS = 10  # in which an engine that was lost may be back
LEAST_TOKEN = 16  # characters
# A query takes seconds at most, so little is worth waiting for; with Serve's own values stopping takes 14 s.
_STOPPING: dict[str, Any] = {"graceful_shutdown_wait_loop_s": 0.1, "graceful_shutdown_timeout_s": 5.0}


@dataclass(frozen=True)
class Place:
    """Where the service listens. `hosts` are more names that a Host header may have, without a port."""

    host: str = "127.0.0.1"
    port: int = 8899  # 0 = one that is free
    hosts: tuple[str, ...] = ()
    token: str = ""


def read_token(path: Path) -> str:
    """Return the token that a file holds. Raises ConfigError where it cannot be read or is too short to be one."""
    try:
        token = path.read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"--token-file: {path}: the file cannot be read: {error}") from error
    if len(token) < LEAST_TOKEN or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"--token-file: {path}: holds no token; one line of {LEAST_TOKEN} or more letters and digits is needed, "
            "such as `openssl rand -hex 32` prints"
        )
    return token


def serve(
    directory: RunDirectory, config: Config, place: Place, workers: int = 1, on_ready: Callable[[str], None] = print
) -> None:
    """Serve a run until SIGTERM or Ctrl-C; `on_ready` hears the address once questions are answered.

    Raises:
        ConfigError: an address that cannot be listened at, or that others reach while there is no token; the extra
            `serve` is not installed; no engine can be started.
        ArtifactMismatch: the run cannot be asked, or not with the model that is there.
    """
    if workers < 1:
        raise ConfigError(f"--workers: found {workers}, expected 1 or more")
    if not _is_loopback(place.host) and not place.token:
        raise ConfigError(
            f"--host: {place.host} can be reached from other machines; name a --token-file, which they must know"
        )
    _require_serve()
    from influray.ask.http_server import HttpServer, listen

    QueryEngine(directory, config)  # before anything is started: that there is a run to ask
    listener = listen(place.host, place.port)
    with contextlib.closing(listener), connect(config.resources) as cluster:
        if not cluster.owned:
            raise ConfigError(
                "influray serve: found a Ray cluster that others share (RAY_ADDRESS, or one that this process is "
                "connected to); unset it, the service starts one of its own"
            )
        gpus = resolve_resources(config.resources, cluster).gpus_per_worker
        from ray import serve as ray_serve

        # Its warnings are of engines that are busy, which admission sees to, and of those lost, which `ask` tells.
        logging.getLogger("ray.serve").setLevel(logging.ERROR)
        ray_serve.start(proxy_location="Disabled")
        engine = _engine(directory.address, config.model_dump(mode="json"), workers, gpus)
        handle: Any = ray_serve.run(engine.bind(), name=APPLICATION, route_prefix=None)
        _require_ready(handle.refused.remote().result())
        server = HttpServer(_application(directory, config, place, handle, workers), listener)
        server.start()
        try:
            on_ready(f"http://{_in_url(place.host)}:{listener.getsockname()[1]}/")
            with contextlib.suppress(KeyboardInterrupt):  # how the service is meant to end
                server.wait()
        finally:
            server.close()  # queries under way are finished; the rest ends with the cluster


def _application(directory: RunDirectory, config: Config, place: Place, handle: Any, workers: int) -> Any:
    from influray.ask.http_app import build_app
    from influray.ask.http_guard import Access, Guard

    admission = Admission(workers)

    async def ask(asked: Asked) -> dict[str, Any]:
        with admission.admitted():
            try:
                found = await handle.ask.remote(asked)
            except RayError as error:
                loss = loss_of(error)
                if loss.cause is not None:
                    raise
                logger.warning("an engine was lost, and is started again: %s", loss.reason)
                raise Busy(ENGINE_SECONDS) from error
        admission.answered(*found.pop("batch"))
        return found

    return Guard(build_app(directory, config, ask), Access((*place.hosts, _in_url(place.host)), place.token))


def _engine(run_dir: str, config: dict[str, Any], workers: int, gpus: float) -> Any:
    from ray import serve as ray_serve

    threads = config["resources"]["threads_per_worker"]
    plugins = permitted()

    @ray_serve.deployment(
        name=ENGINE,
        num_replicas=workers,
        ray_actor_options={"num_cpus": 0, "num_gpus": gpus},
        max_ongoing_requests=MOST,  # all that are admitted: Serve holds the rest back and asks again, later and later
        **_STOPPING,
    )
    class Engine:
        def __init__(self) -> None:
            from influray.runtime.process import prepare_process
            from influray.runtime.workers import prepare_torch

            permit(plugins)
            # Questions differ in length, and oneDNN keeps a program for each shape: 80 MiB of them by its default.
            os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "64")
            prepare_process(RunDirectory(run_dir).logs, threads)
            device = prepare_torch(threads)
            self._engine = QueryEngine(RunDirectory(run_dir), parse_config(config), device)
            self._refused = ("", "")
            try:
                self._engine.load()
            except USER_ERRORS as error:  # told to the driver by `refused`: Serve would start the actor again
                self._refused = type(error).__name__, str(error)

        async def refused(self) -> tuple[str, str]:
            return self._refused

        def _answer(self, asked: list[Asked]) -> list[Any]:
            try:
                return self._engine.ask_many(asked)
            finally:
                _give_memory_back()

        @ray_serve.batch(max_batch_size=BATCH, batch_wait_timeout_s=BATCH_SECONDS)
        async def ask(self, asked: list[Asked]) -> list[dict[str, Any]]:
            from influray.ask.http_app import error_of

            began = time.perf_counter()
            answers = await asyncio.to_thread(self._answer, asked)
            batch = time.perf_counter() - began, len(asked)
            plain: list[dict[str, Any]] = []
            for found in answers:
                if isinstance(found, Exception):
                    status, body = error_of(found)
                    plain.append({"status": status, "error": body, "batch": batch})
                else:
                    plain.append({"answer": found.as_plain(), "batch": batch})
            return plain

    return Engine


def _give_memory_back() -> None:
    """Give what is free to the system; left to itself glibc keeps 90 MiB more after minutes of uneven batches."""
    with contextlib.suppress(AttributeError):  # of another C library
        ctypes.CDLL(None).malloc_trim(0)


def _require_ready(refused: tuple[str, str]) -> None:
    kind, message = refused
    if kind:
        raise {"ArtifactMismatch": ArtifactMismatch, "DataError": DataError}.get(kind, ConfigError)(message)


def _require_serve() -> None:
    try:
        import fastapi  # noqa: F401
        import ray.serve  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"influray serve: {error}: {install_command('serve')}") from error


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _in_url(host: str) -> str:
    return f"[{host}]" if ":" in host else host
