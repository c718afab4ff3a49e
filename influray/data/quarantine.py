"""RUN/quarantine.jsonl: every row that was not used, with its place and the reason."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from influray.protocols import ArtifactMismatch
from influray.store.artifact import write_bytes
from influray.store.mirror import present

KEYS = ("split", "file", "line", "id", "row", "stage", "reason", "checkpoint")
# Entries stand in this order whatever was run again, so the same rows give the same bytes.
_ORDER = ("split", "stage", "checkpoint", "file", "line", "row", "reason")


def entry(
    split: str,
    stage: str,
    reason: str,
    *,
    file: str = "",
    line: int | None = None,
    id: str | None = None,
    row: int | None = None,
    checkpoint: int | None = None,
) -> dict[str, Any]:
    """Return one entry. `row` is the catalogue's, None for a row that did not get into it."""
    return dict(zip(KEYS, (split, file, line, id, row, stage, reason, checkpoint), strict=True))


def write_quarantine(
    path: str | Path,
    split: str,
    stage: str,
    entries: Iterable[Mapping[str, Any]],
    checkpoint: int | None = None,
) -> None:
    """Put `entries` in the place of all that a stage had found in a split (at one checkpoint, where it has one).

    Running a step again therefore never doubles its entries. The file is replaced whole, or not at all.
    """
    mine = (split, stage, checkpoint)
    new = [{key: found.get(key) for key in KEYS} for found in entries]
    assert all((found["split"], found["stage"], found["checkpoint"]) == mine for found in new)
    old = read_quarantine(path)
    kept = [found for found in old if (found["split"], found["stage"], found["checkpoint"]) != mine]
    merged = sorted(kept + new, key=_position)
    if merged != old or not present(path).exists():
        # A lone surrogate in an id comes out as its JSON escape.
        text = "".join(json.dumps(found, ensure_ascii=False) + "\n" for found in merged)
        write_bytes(path, text.encode("utf-8", "backslashreplace"))


def read_quarantine(path: str | Path) -> list[dict[str, Any]]:
    """Return all entries, none where there is no file. Raises ArtifactMismatch where it is not a quarantine."""
    try:
        lines = present(path).read_bytes().split(b"\n")
    except FileNotFoundError:
        return []
    entries = []
    for number, line in enumerate(lines, start=1):
        if line:
            try:
                found = json.loads(line)
                entries.append({key: found[key] for key in KEYS})
            except (ValueError, KeyError, TypeError) as error:
                raise ArtifactMismatch(
                    f"{path}:{number}: not an entry of a quarantine ({error}); delete the file and run again"
                ) from error
    return entries


def _position(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((value is not None, -1 if value is None else value) for value in map(found.get, _ORDER))
