"""Whose folder a run directory is: influray writes, overwrites and deletes only in one that it has made or found empty.

A run directory is known by its run.json, the first file that a run writes under its lease; where that was lost, by
config.yaml beside a manifest of ours. A folder, or a prefix on object storage, that holds anything else is somebody's,
and is left alone.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from influray.protocols import ConfigError
from influray.store.mirror import address_of, location_of, present

RUN, LEASE = "run.json", "lease.json"
# What a run may leave that is killed before it has written run.json.
EARLY = {LEASE, "lease-probe"}
EARLY_WITH_LEASE = {"config.yaml", "logs"}
EARLY_LOGS = ("driver.log", "metrics.jsonl", "worker-")
# The folders of a run directory, in which everything is replaced as a whole.
PARTS = (
    "cascade", "data", "warmup", "features", "fit", "attribution", "selection", "tune", "evaluation", "index",
    "validate", "report", "logs",
)  # fmt: skip
COMMITTED = ("data/pool", "attribution")
LINK_DEPTH = 3  # features/pool/checkpoint-1, tune/NAME/seed-S


def require_ours(path: Path) -> None:
    """Raise ConfigError where a run directory may not be made at `path`, or may not be written to.

    It may where there is nothing, an empty folder, or a run directory, no part of which is a link to elsewhere.
    """
    shown = address_of(path)
    location = location_of(path)
    if location is None:
        _require_folder(path)
        names = sorted(os.listdir(path)) if path.is_dir() else []
    else:
        names = [] if location.stat(path / RUN) is not None else location.names(path)
    if RUN in names or (location is not None and not names):
        _require_run_json(path, shown)
        if location is None:
            _require_no_links(path)
        return
    if "config.yaml" in names and any(_is_manifest(path / part / "manifest.json") for part in COMMITTED):
        return
    strange = list(_strange(path, names))
    if strange:
        more = f" and {len(strange) - 1} more" if len(strange) > 1 else ""
        raise ConfigError(
            f"run_dir: {shown} holds {strange[0]!r}{more} and no run.json, so it is no run directory; a run would "
            "overwrite and delete what lies there: name an empty folder, or one that does not exist yet"
        )


def require_apart(run_dir: Path, inputs: Iterable[tuple[str, Path]], searched: bool = True) -> None:
    """Raise ConfigError where a run would read what it writes: `inputs` are (dotted key, file or folder).

    `searched`: all that lies below a folder is read.
    """
    run_dir = run_dir.resolve()
    for key, given in inputs:
        path = given.resolve()
        if searched and path.is_dir() and (run_dir == path or run_dir.is_relative_to(path)):
            raise ConfigError(
                f"run_dir: {run_dir} lies in {key} ({given}), and what a run writes there would be read as data; name "
                "a folder outside"
            )
        if (
            path.is_relative_to(run_dir)
            and path.relative_to(run_dir).parts[:1]
            and (path.relative_to(run_dir).parts[0] in PARTS)
        ):
            raise ConfigError(
                f"{key}: {given} lies in a part of the run directory {run_dir} that the run replaces; name another "
                "run_dir, or move the file"
            )


def _require_folder(path: Path) -> None:
    if path == Path(path.anchor) or path == Path.home().resolve():
        raise ConfigError(
            f"run_dir: {path} is {'the root' if path.parent == path else 'your home folder'}; name a folder in it"
        )
    for place in (path, *path.parents):
        if place.exists() or place.is_symlink():
            if not place.is_dir():
                what = "a link to nothing" if place.is_symlink() and not place.exists() else "a file"
                raise ConfigError(f"run_dir: {place} is {what}; a run directory is a folder")
            if not os.access(place, os.W_OK | os.X_OK):
                raise ConfigError(f"run_dir: {path} cannot be written: no right to write in {place}")
            return


def _require_run_json(path: Path, shown: str) -> None:
    file = path / RUN
    try:
        found: Any = json.loads(present(file).read_bytes())
    except (OSError, ValueError):
        return  # torn or a folder: a matter for who reads it, and who says what to delete
    if not (isinstance(found, dict) and (isinstance(found.get("steps"), dict) or not found)):
        raise ConfigError(
            f"run_dir: {shown} holds a run.json that influray did not write (it has no steps); name an empty folder, "
            "or one that does not exist yet"
        )


def _strange(path: Path, names: list[str]) -> Iterator[str]:
    """Yield the names of what no run of ours leaves before its run.json is there."""
    lease = _lease(path / LEASE) if LEASE in names else None
    leased = bool(lease)
    for name in names:
        if name.startswith(".") and name.endswith(".tmp"):
            continue
        if name in EARLY and (name != LEASE or lease is not None):
            continue
        if leased and name in EARLY_WITH_LEASE and (name != "logs" or _only_logs(path / name)):
            continue
        yield name


def _lease(path: Path) -> str | None:
    """Return the text of a lease, "" of one whose writer was killed at once, None where it is no lease of ours."""
    try:
        text = present(path).read_text(encoding="utf-8")
        return text if not text or {"pid", "host", "since"} <= set(json.loads(text)) else None
    except (OSError, ValueError, TypeError):
        return None


def _is_manifest(path: Path) -> bool:
    try:
        found = json.loads(present(path).read_bytes())
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and isinstance(found.get("schema"), int) and isinstance(found.get("parts"), list)


def _only_logs(folder: Path) -> bool:
    if location_of(folder) is not None:
        return True
    return folder.is_dir() and all(name.startswith(EARLY_LOGS) for name in os.listdir(folder))


def _require_no_links(path: Path) -> None:
    """Raise ConfigError where a folder of the run directory is a link out of it: what lies there is not the run's."""

    def look(folder: Path, depth: int) -> None:
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_symlink():
                    target = Path(entry.path).resolve()
                    if not target.is_relative_to(path):
                        raise ConfigError(
                            f"run_dir: {entry.path} is a link to {target}, where a run would overwrite and delete; put "
                            "the run directory there as a whole"
                        )
                elif depth > 1 and entry.is_dir():
                    look(Path(entry.path), depth - 1)

    for part in PARTS:
        folder = path / part
        if folder.is_symlink():
            target = folder.resolve()
            raise ConfigError(
                f"run_dir: {folder} is a link to {target}, where a run would overwrite and delete; put the run "
                "directory there as a whole"
            )
        if folder.is_dir():
            look(folder, LINK_DEPTH)
