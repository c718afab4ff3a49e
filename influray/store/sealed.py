"""JSON that carries its own checksum: manifests, receipts, run.json, state.json, evaluations, summaries.

`checksum` is the sha256 of the canonical JSON (sorted keys, no spaces) of the object without it. So no value of a file
that was written whole can change unnoticed, and what was torn, emptied or replaced by a folder is told by one message.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from influray.protocols import ArtifactMismatch
from influray.store.checks import damage
from influray.store.mirror import present

SCHEMA = 4  # of every sealed file; a reader refuses another one
CHECKSUM = "checksum"


def sealed(facts: Mapping[str, Any]) -> dict[str, Any]:
    """Return the facts with the schema number and their checksum, as they are to be written."""
    # By way of JSON, which turns other keys than texts into such, and tuples into lists.
    plain = json.loads(json.dumps({"schema": SCHEMA, **facts}, default=dict))
    plain.pop(CHECKSUM, None)
    return {**plain, CHECKSUM: _checksum(plain)}


def read_sealed(path: str | Path) -> dict[str, Any]:
    """Return the facts of a sealed file, the schema number among them and the checksum not.

    Raises:
        FileNotFoundError: there is none.
        DamagedArtifact: it is not what was written: torn, changed, empty, or a folder.
        ArtifactMismatch: an earlier version wrote it.
    """
    path = present(path)
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise
    except OSError as error:
        raise damage(path, f"cannot be read ({error})") from error
    try:
        found = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise damage(path, f"not JSON ({error})") from error
    if not isinstance(found, dict):
        raise damage(path, f"not a JSON object but a {type(found).__name__}")
    checksum = found.pop(CHECKSUM, None)
    if checksum is None and isinstance(found.get("schema"), int) and found["schema"] < SCHEMA:
        raise ArtifactMismatch(
            f"{path}: schema {found['schema']}, this version reads {SCHEMA}; run the step again in a new run_dir"
        )
    if checksum != _checksum(found):
        raise damage(path, "not what was written (its checksum does not fit)")
    if found.get("schema") != SCHEMA:
        raise ArtifactMismatch(
            f"{path}: schema {found.get('schema')}, this version reads {SCHEMA}; run the step again in a new run_dir"
        )
    return found


def _checksum(plain: Mapping[str, Any]) -> str:
    text = json.dumps(plain, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()
