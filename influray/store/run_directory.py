"""The run directory: where each artifact lies, who holds it, and what has been done (run.json)."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import socket
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from influray.store.artifact import SCHEMA, read_json, write_bytes, write_json
from influray.store.lease import Holding, leased, locked
from influray.store.mirror import address_of, flush, local, location_of

VERSIONED = ("influray", "torch", "transformers", "peft", "ray", "pyarrow", "numpy", "tokenizers")


class RunDirectory:
    """The folder of one run. Paths are properties; nothing is created before it is written.

    On object storage (s3://, gs://) the paths are those of its mirror on this machine, and `address` is what names it
    on others. Raises ConfigError where a URI is not one of a run directory.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = local(path).resolve()
        self._holding: Holding | None = None  # while this process drives the run

    @property
    def address(self) -> str:
        """What names the folder on every machine: its URI, or its path."""
        return address_of(self.path)

    @property
    def config_path(self) -> Path:
        return self.path / "config.yaml"

    @property
    def quarantine_path(self) -> Path:
        return self.path / "quarantine.jsonl"

    @property
    def warmup(self) -> Path:
        return self.path / "warmup"

    @property
    def attribution(self) -> Path:
        return self.path / "attribution"

    @property
    def fit(self) -> Path:
        """What a scorer keeps of its passes over the pool."""
        return self.path / "fit"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    def data(self, split: str) -> Path:
        return self.path / "data" / split

    def checkpoint(self, number: int) -> Path:
        return self.warmup / f"checkpoint-{number}"

    def features(self, split: str, checkpoint: int) -> Path:
        return self.path / "features" / split / f"checkpoint-{checkpoint}"

    def selection(self, name: str) -> Path:
        return self.path / "selection" / name

    def tune(self, name: str, seed: int) -> Path:
        return self.path / "tune" / name / f"seed-{seed}"

    def evaluation(self, name: str, seed: int) -> Path:
        return self.path / "evaluation" / name / f"seed-{seed}.json"

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the directory for one driver; the lock goes with the process, however it ends.

        Raises:
            ConfigError: another driver holds it, and which one, or the folder cannot be made.
            RunStopped: the directory was taken from this driver; `record_step` raises it too.
        """
        location = location_of(self.path)
        # In a mirror the lock is between the processes of this machine, and the lease of the same name for all others.
        name = "lease.json" if location is None else ".lease.tmp"
        with locked(self.path, name, now()) as holding, contextlib.ExitStack() as stack:
            if location is not None:
                stack.enter_context(leased(location, self.path / "lease.json", now(), holding))
                stack.callback(flush, self.path)
            self._holding = holding
            stack.callback(setattr, self, "_holding", None)
            yield
            holding.check()

    def read(self) -> dict[str, Any]:
        """Return run.json, or its empty form where there is none yet."""
        try:
            return read_json(self.path / "run.json")
        except FileNotFoundError:
            return {"schema": SCHEMA, "steps": {}}

    def record_step(self, name: str, **facts: Any) -> None:
        """Set the facts of a step (fingerprint, status, seconds, counts) and those of the host."""
        if self._holding is not None:
            self._holding.check()
        run = self.read()
        run["steps"][name] = facts
        run["versions"] = versions()
        run["host"] = {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count() or 0}
        write_json(self.path / "run.json", run)

    def write_config(self, text: str) -> None:
        write_bytes(self.config_path, text.encode())


def versions() -> dict[str, str]:
    """Return the installed versions of what the numbers depend on."""
    return dict(_versions())


@functools.cache
def _versions() -> tuple[tuple[str, str], ...]:
    # Read once: it parses each package's metadata, 20 ms, and the key of every shard asks for it.
    found = []
    for name in VERSIONED:
        with contextlib.suppress(PackageNotFoundError):
            found.append((name, version(name)))
    return tuple(found)


def now() -> str:
    """Return the time as ISO 8601, UTC, to the second."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
