"""Whether a run has nothing to do, found out by hashes of files alone: neither torch nor a tokenizer is imported.

A run that has ended keeps in run.json what it was made from: its config, the versions of packages, and the content of
every file that it read and of every file that its steps left. Where all is as it was, running it again changes
nothing. Anything else, an unreadable file included, is for the steps to judge.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from influray.config import Config
from influray.protocols import USER_ERRORS, ArtifactMismatch
from influray.scorers.propagation import propagating_scorers
from influray.steps.data import source_files
from influray.steps.step import Step
from influray.store.artifact import MANIFEST, fingerprint, require_manifest
from influray.store.checks import MADE_BY, committed_files, hash_once
from influray.store.mirror import location_of
from influray.store.run_directory import RunDirectory, versions

THREADS = 8  # that hash at a time
LOOSE = {("cascade", ("logs",)), ("cascade", ("lease.json",))}  # what others may write there


def is_finished(config: Config, directory: RunDirectory, steps: Sequence[Step]) -> bool:
    """Return whether these steps of a run were run to their end and all that they read and left is as it was."""
    try:
        known = directory.read().get("finished", {})
        if not {step.name for step in steps} <= set(known.get("steps", ())):
            return False
        with directory.hold():
            left = left_digest(directory, known["steps"])
            return known["left"] == left and known["read"] == read_digest(config, directory)
    except (*USER_ERRORS, OSError):
        return False


def read_digest(config: Config, directory: RunDirectory) -> str | None:
    """Return what identifies all that a run reads: config, versions and the content of files.

    None where a run lies on object storage, where some of it is the hub's to tell, or a file cannot be read.
    """
    if location_of(directory.path) is not None or not all(Path(model.base).is_dir() for _, model in config.models):
        return None
    try:
        return _read_digest(config)
    except (*USER_ERRORS, OSError):  # which the step that reads it says better
        return None


def _read_digest(config: Config) -> str | None:
    root, files = Path(config.data.root), []
    for _, model in config.models:
        files += [*_files(Path(model.base)), *_files(Path(model.base) / "additional_chat_templates")]
        files += [Path(model.chat_template)] if model.chat_template != "auto" else []
    warmups = [config.warmup, *([config.cascade.warmup] if config.cascade and config.cascade.warmup else [])]
    for one in (one for warmup in warmups for one in warmup.checkpoints):
        files += _files(Path(one.adapter))
        if one.optimizer is not None:
            files += _files(Path(one.optimizer), "**/*") or [Path(one.optimizer)]
    choosing = [*config.selectors, *([config.cascade.selector] if config.cascade else [])]
    limits = [ids for one in choosing for ids in (one.constraints.include, one.constraints.exclude)]
    files += [root / ids for ids in limits if isinstance(ids, str)]
    exact = [one.exact.directory.path for one in propagating_scorers(config)]
    if any(location_of(path) is not None for path in exact):
        return None
    files += [path / name / MANIFEST for path in exact for name in ("attribution", "data/pool")]
    sources = [(split, *of) for split, found in source_files(config).items() for of in found]
    if any(file.kind == "hub" for _, _, file in sources):
        return None
    rows = [(split, task, file.name, file.reading.facts()) for split, task, file in sources]
    files += [Path(file.path) for _, _, file in sources]
    hashes = list(zip(map(str, files), _hashes(files), strict=True))
    return fingerprint([config.model_dump(mode="json"), versions(), rows, hashes])


def left_digest(directory: RunDirectory, steps: Iterable[str], fresh: bool = True) -> str:
    """Return what identifies the files that steps have left; with `fresh` False those of manifests are not hashed.

    Raises:
        ArtifactMismatch: of a manifest that is asked for its files; it is not what was committed.
    """
    wanted = [name for name, step in MADE_BY.items() if step in steps or (step == "index" and "report" in steps)]
    paths = [directory.config_path]
    for name in wanted:
        path = directory.path / name
        found = [path] if path.is_file() else _files(path, "**/*")
        paths += [one for one in found if (name, one.relative_to(directory.path).parts[1:2]) not in LOOSE]
    known: dict[Path, str] = {}
    for path in () if fresh else paths:
        if path.name == MANIFEST:
            known |= {
                path.parent / name: sha256 for name, sha256, _ in committed_files(require_manifest(path.parent, ""))
            }
    todo = [path for path in paths if path not in known]
    hashes = known | dict(zip(todo, _hashes(todo), strict=True))
    return fingerprint({str(path.relative_to(directory.path)): hashes[path] for path in paths})


def record_finished(directory: RunDirectory, steps: Sequence[Step], read: str | None) -> None:
    """Keep in run.json that the steps of a run have ended; `read` is the digest of what it read, from before.

    Not where a manifest is damaged that none of the steps makes: the next run is to look at everything.
    """
    names = [step.name for step in steps]
    with contextlib.suppress(ArtifactMismatch):
        if read is not None:
            left = left_digest(directory, names, fresh=False)
            directory.record("finished", {"steps": names, "read": read, "left": left})


def _files(folder: Path, pattern: str = "*") -> list[Path]:
    return sorted(path for path in folder.glob(pattern) if path.is_file())


def _hashes(paths: Iterable[Path]) -> list[str]:
    with ThreadPoolExecutor(THREADS) as threads:
        return list(threads.map(hash_once, paths))
