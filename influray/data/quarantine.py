"""RUN/quarantine.jsonl: every row that was not used, with its place and the reason.

Beside it quarantine.sha256 tells its content, in the form of sha256sum.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from influray.store.artifact import hash_bytes, write_bytes
from influray.store.checks import damage
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
        data = text.encode("utf-8", "backslashreplace")
        write_bytes(path, data)
        write_bytes(_seal(path), _line(path, data))


def read_quarantine(path: str | Path) -> list[dict[str, Any]]:
    """Return all entries, none where there is no file. Raises DamagedArtifact where it is not what was written."""
    seal = _seal(path)
    try:
        data = present(path).read_bytes()
    except FileNotFoundError:
        if present(seal).exists():
            raise damage(seal, f"tells of {Path(path).name}, which is gone") from None
        return []
    except OSError as error:
        raise damage(path, f"cannot be read ({error})") from error
    try:
        whole = present(seal).read_bytes() == _line(path, data)
    except OSError:
        whole = False
    if not whole:
        raise damage(path, f"not what was written ({seal.name} does not fit)")
    return [{key: found[key] for key in KEYS} for found in map(json.loads, data.split(b"\n")[:-1])]


def _seal(path: str | Path) -> Path:
    return Path(path).with_suffix(".sha256")


def _line(path: str | Path, data: bytes) -> bytes:
    return f"{hash_bytes(data)}  {Path(path).name}\n".encode()


def _position(found: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple((value is not None, -1 if value is None else value) for value in map(found.get, _ORDER))
