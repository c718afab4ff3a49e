"""Whether a run has nothing to do, found out by hashes of files alone: neither torch nor a tokenizer is imported.

A run that has ended keeps in run.json what it was made from: its config, the versions of packages, and the content of
every file that it read and of every file that its steps left. Where all is as it was, running it again changes
nothing. Anything else, an unreadable file included, is for the steps to judge.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from influray.config import Config
from influray.protocols import USER_ERRORS
from influray.steps.data import source_files
from influray.steps.step import Step
from influray.store.artifact import fingerprint, read_json
from influray.store.checks import MADE_BY, committed_files, hash_once
from influray.store.mirror import location_of
from influray.store.run_directory import RunDirectory, versions

THREADS = 8  # that hash at a time


def is_finished(config: Config, directory: RunDirectory, steps: Sequence[Step]) -> bool:
    """Return whether these steps of a run were run to their end and all that they read and left is as it was."""
    try:
        known = directory.read().get("finished", {})
        if not {step.name for step in steps} <= set(known.get("steps", ())):
            return False
        return known["read"] == read_digest(config, directory) and known["left"] == left_digest(
            directory, known["steps"]
        )
    except (*USER_ERRORS, OSError):
        return False


def read_digest(config: Config, directory: RunDirectory) -> str | None:
    """Return what identifies all that a run reads: config, versions and the content of files.

    None where a run lies on object storage, where some of it is the hub's to tell, or a file cannot be read.
    """
    if location_of(directory.path) is not None or not Path(config.model.base).is_dir():
        return None
    try:
        return _read_digest(config)
    except (*USER_ERRORS, OSError):  # which the step that reads it says better
        return None


def _read_digest(config: Config) -> str | None:
    base = Path(config.model.base)
    files: dict[str, list[Path]] = {"base": sorted(path for path in base.iterdir() if path.is_file())}
    files["templates"] = sorted(base.glob("additional_chat_templates/*"))
    if config.model.chat_template != "auto":
        files["template"] = [Path(config.model.chat_template)]
    for i, one in enumerate(config.warmup.checkpoints):
        files[f"adapter {i}"] = _below(Path(one.adapter))
        files[f"optimizer {i}"] = _below(Path(one.optimizer)) if one.optimizer else []
    sources = source_files(config)
    if any(file.kind == "hub" for found in sources.values() for _, file in found):
        return None
    rows = [(split, task, f.name, f.reading.facts(), f.path) for split, found in sources.items() for task, f in found]
    files["rows"] = [Path(path) for *_, path in rows]
    files["ids"] = _files_of_ids(config)
    return fingerprint(
        [
            config.model_dump(mode="json"),
            versions(),
            [row[:-1] for row in rows],
            {kind: list(zip([p.name for p in paths], _hashes(paths), strict=True)) for kind, paths in files.items()},
        ]
    )


def left_digest(directory: RunDirectory, steps: Iterable[str], fresh: bool = True) -> str:
    """Return what identifies the files that steps have left; with `fresh` False those of manifests are not hashed."""
    wanted = [name for name, step in MADE_BY.items() if step in steps or (step == "index" and "report" in steps)]
    paths = [path for name in wanted for path in _below(directory.path / name)]
    known: dict[Path, str] = {}
    for path in paths:
        if not fresh and path.name == "manifest.json":
            committed = committed_files(read_json(path))
            known |= {path.parent / name: digest for name, digest, _ in committed}
    todo = [path for path in (directory.config_path, *paths) if path not in known]
    hashes = known | dict(zip(todo, _hashes(todo), strict=True))
    return fingerprint(
        {str(path.relative_to(directory.path)): hashes[path] for path in (directory.config_path, *paths)}
    )


def record_finished(directory: RunDirectory, steps: Sequence[Step], read: str | None) -> None:
    """Keep in run.json that the steps of a run have ended; `read` is the digest of what it read, from before."""
    if read is not None:
        names = [step.name for step in steps]
        left = left_digest(directory, names, fresh=False)
        directory.record("finished", {"steps": names, "read": read, "left": left})


def _files_of_ids(config: Config) -> list[Path]:
    limits = [ids for one in config.selectors for ids in (one.constraints.include, one.constraints.exclude)]
    return [Path(config.data.root) / ids for ids in limits if isinstance(ids, str)]


def _below(path: Path) -> list[Path]:
    """Return a file, or the files of a folder that are not hidden, in a fixed order."""
    if not path.is_dir():
        return [path] if path.exists() else []
    return sorted(_walk(path))


def _walk(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        paths = (Path(root) / name for name in files if not name.startswith("."))
        yield from (path for path in paths if path.is_file())


def _hashes(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(hash_once, paths))
