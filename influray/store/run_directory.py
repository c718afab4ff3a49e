"""The run directory: where each artifact lies, who holds it, and what has been done (run.json)."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import platform
import socket
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from influray.protocols import ConfigError
from influray.store.artifact import MANIFEST, hash_bytes, write_bytes, write_sealed
from influray.store.checks import MADE_BY, damage, set_aside
from influray.store.claim import require_ours
from influray.store.lease import Holding, leased, locked
from influray.store.mirror import address_of, flush, local, location_of, present
from influray.store.sealed import read_sealed

FILE_ENDINGS = {".json", ".jsonl", ".yaml", ".arrow", ".parquet", ".html", ".safetensors", ".faiss", ".npy", ".sha256"}
FILE_ENDINGS |= {".log"}  # of RUN/logs
FEATURES = "features"
CHOSEN = ("selection", "tune", "evaluation", "scorers")  # folders of a folder for each selection
FOLDERS = ("pool", "target", "test", "adapter", "_receipts")
VERSIONED = ("influray", "torch", "transformers", "peft", "ray", "pyarrow", "numpy", "tokenizers")


class RunDirectory:
    """The folder of one run. Paths are properties; nothing is created before it is written.

    On object storage (s3://, gs://) the paths are those of its mirror on this machine, and `address` is what names it
    on others. `features_at` and `scores_at` are where within it the datastores lie, and the folder of the matrix and of
    what was fitted: elsewhere for scorers that are judged beside the run's own. `pool_at` is where within it another
    pool lies, its catalogue and its datastores: rows that the run has never seen, for its own targets and checkpoints.
    Raises ConfigError where a URI is not one of a run directory.
    """

    def __init__(self, path: str | Path, features_at: str = FEATURES, scores_at: str = "", pool_at: str = "") -> None:
        self.path = local(path).resolve()
        self.features_at = features_at
        self.scores_at = scores_at
        self.pool_at = pool_at
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
        folder = self.path / self.pool_at
        return (folder if self.features_at == FEATURES else folder / self.features_at) / "quarantine.jsonl"

    @property
    def cascade(self) -> RunDirectory:
        """The cheap pass, a run of its own."""
        return RunDirectory(self.path / "cascade")

    @property
    def warmup(self) -> Path:
        return self.path / "warmup"

    @property
    def attribution(self) -> Path:
        return self.path / self.scores_at / "attribution"

    @property
    def fit(self) -> Path:
        """What a scorer keeps of its passes over the pool."""
        return self.path / self.scores_at / "fit"

    @property
    def index(self) -> Path:
        return self.path / "index"

    @property
    def validation(self) -> Path:
        """Retrainings, and what experiments made of them."""
        return self.path / "validate"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def report(self) -> Path:
        return self.path / "report" / "index.html"

    def data(self, split: str) -> Path:
        return self._home(split) / "data" / split

    def checkpoint(self, number: int) -> Path:
        return self.warmup / f"checkpoint-{number}"

    def features(self, split: str, checkpoint: int) -> Path:
        return self._home(split) / self.features_at / split / f"checkpoint-{checkpoint}"

    def selection(self, name: str) -> Path:
        return self.path / "selection" / name

    def tune(self, name: str, seed: int) -> Path:
        return self.path / "tune" / name / f"seed-{seed}"

    def evaluation(self, name: str, seed: int) -> Path:
        return self.path / "evaluation" / name / f"seed-{seed}.json"

    def _home(self, split: str) -> Path:
        return self.path / self.pool_at if split == "pool" else self.path

    def require_ours(self) -> None:
        """Raise ConfigError where no run may write: the folder is a file, or holds what no run has made."""
        require_ours(self.path)

    def claim(self) -> None:
        """Make the folder a run directory, unless it is one, by its run.json. Raises ConfigError as `require_ours`."""
        self.require_ours()
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self.begin()
        except OSError as error:
            raise ConfigError(f"run_dir: {self.path} cannot be written: {error}") from error

    def begin(self) -> None:
        """Write an empty run.json where there is none: the mark by which the folder is known from now on."""
        if not present(self.path / "run.json").exists():
            write_sealed(self.path / "run.json", {"steps": {}})

    @contextlib.contextmanager
    def hold(self) -> Iterator[None]:
        """Hold the directory for one driver; the lock goes with the process, however it ends.

        Raises:
            ConfigError: another driver holds it, and which one, or the folder cannot be made or is not a run's.
            RunStopped: the directory was taken from this driver; `record_step` raises it too.
        """
        self.require_ours()
        location = location_of(self.path)
        # In a mirror the lock is between the processes of this machine, and the lease of the same name for all others.
        name = "lease.json" if location is None else ".lease.tmp"
        with locked(self.path, name, now()) as holding, contextlib.ExitStack() as stack:
            if location is None:
                self._clear_the_way()
            else:
                stack.enter_context(leased(location, self.path / "lease.json", now(), holding))
                stack.callback(flush, self.path)
            self._holding = holding
            stack.callback(setattr, self, "_holding", None)
            yield
            holding.check()

    def read(self) -> dict[str, Any]:
        """Return run.json, or its empty form where there is none yet. Raises as `read_sealed` otherwise."""
        try:
            return read_sealed(self.path / "run.json")
        except FileNotFoundError:
            return {"steps": {}}

    def record_step(self, name: str, **facts: Any) -> None:
        """Set the facts of a step (fingerprint, status, seconds, counts) and those of the host."""
        if self._holding is not None:
            self._holding.check()
        run = self.read()
        run["steps"][name] = facts
        run["versions"] = versions()
        run["host"] = {"name": socket.gethostname(), "system": platform.platform(), "cpus": os.cpu_count() or 0}
        write_sealed(self.path / "run.json", run)

    def record(self, name: str, facts: Mapping[str, Any]) -> None:
        """Set facts of the run as a whole."""
        write_sealed(self.path / "run.json", {**self.read(), name: facts})

    def record_outdated(self, step: str) -> None:
        """Note in run.json that part of what a step made was deleted, since what it was made from has changed."""
        run = self.read()
        if step in run["steps"]:
            run["steps"][step]["status"] = "outdated"
            write_sealed(self.path / "run.json", run)

    def require_made(self, *steps: str) -> None:
        """See that what run.json says these steps have made is there; none of it is read.

        Raises:
            DamagedArtifact: something is gone, and which step makes it again; or run.json is, and there is a catalogue.
        """
        record = self.path / "run.json"
        if not present(record).exists() and present(self.data("pool") / MANIFEST).exists():
            raise damage(record, "gone")
        recorded = self.read()["steps"]
        for step in steps:
            facts = recorded.get(step, {})
            for name in facts.get("artifacts", ()) if facts.get("status") == "done" else ():
                if ".." not in name.split("/") and not present(self.path / name).is_file():
                    raise damage(self.path / name, "gone, though run.json says that it was made")

    def write_config(self, text: str) -> None:
        """Write config.yaml, and to run.json what it is, so that another one is not taken for it."""
        write_bytes(self.config_path, text.encode())
        run, digest = self.read(), hash_bytes(text.encode())
        if run.get("config") != digest:
            write_sealed(self.path / "run.json", {**run, "config": digest})

    def check_config(self) -> Path:
        """Return the path of config.yaml, once it is found to be that of the run.

        Where run.json does not say which one that was, there need not even be one.

        Raises:
            DamagedArtifact: it was changed since, or is gone.
        """
        path, expected = present(self.config_path), self.read().get("config")
        if expected is None:
            return path
        try:
            same = hash_bytes(path.read_bytes()) == expected
        except FileNotFoundError:
            raise damage(path, "gone") from None
        except OSError as error:
            raise damage(path, f"cannot be read ({error})") from error
        if not same:
            raise damage(path, "not the config of the run (run.json)")
        return path

    def _clear_the_way(self) -> None:
        """Set aside folders that stand where files belong, and files where folders do."""
        for name in ("config.yaml", "run.json", *MADE_BY, "logs"):
            path = self.path / name
            if path.exists() and path.is_dir() == (path.suffix in FILE_ENDINGS):
                set_aside(path)
        for name in (*MADE_BY, "logs"):
            for folder, folders, files in os.walk(self.path / name):
                folders[:] = [one for one in folders if not one.startswith(".")]
                chosen = Path(folder).name in CHOSEN  # people choose what is in it, dots included
                wrong = [] if chosen else [one for one in folders if Path(one).suffix in FILE_ENDINGS]
                wrong += [one for one in files if _is_folder(Path(folder) / one)]
                for one in wrong:
                    set_aside(Path(folder) / one)


def _is_folder(path: Path) -> bool:
    """Return whether what is called so in a run directory is a folder, when all is well."""
    named = path.parent.name in CHOSEN and not path.name.startswith(".")
    return named or path.name in FOLDERS or path.name.rstrip("0123456789") in ("checkpoint-", "seed-")


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
