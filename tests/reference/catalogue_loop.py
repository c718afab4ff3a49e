"""A catalogue by the plainest loop: one row after the other, all ids and all rows in memory, no blocks and no drafts."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from influray.data.drafts import SCHEMA
from influray.data.files import DataFile
from influray.data.readers import read_rows
from influray.data.records import BadRow, parse_record
from influray.store.artifact import hash_file, write_table


def catalogue_loop(
    files: Sequence[tuple[str, DataFile, int | None]], encoder: Any, part_rows: int, part_bytes: int, **limits: int
) -> list[list[dict[str, Any]]]:
    """Return for each (group, file, limit of the group's usable rows) its parts: `rows` of SCHEMA and the receipt's."""
    taken: dict[str, str] = {}  # id -> where it was used
    usable: dict[str, int] = {}
    row = 0
    made = []
    for group, file, limit in files:
        usable.setdefault(group, 0)
        part: dict[str, Any] = {"rows": [], "bad": [], "read": 0, "next_line": 1, "last": False}
        parts, size = [], 0
        for line, raw in read_rows(file, **limits) if limit is None or usable[group] < limit else ():
            part["read"] += 1
            part["next_line"] = line + 1
            try:
                if isinstance(raw, BadRow):
                    raise raw
                values = _values(raw, file, encoder, taken)
                taken[values["id"]] = f"{file.name}:{line}"
                part["rows"].append({"row": row, "file": file.name, "line": line, "group": group, **values})
                row += 1
                usable[group] += 1
                size += len(raw) + 4 * values["tokens"]
            except BadRow as bad:
                stage = "encode" if getattr(bad, "encoding", False) else "read"
                part["bad"].append({"line": line, "id": bad.id, "stage": stage, "reason": bad.reason})
            if usable[group] == limit:
                break
            if part["read"] >= part_rows or size >= part_bytes:
                parts.append(part)
                part = {"rows": [], "bad": [], "read": 0, "next_line": line + 1, "last": False}
                size = 0
        made.append([*parts, {**part, "last": True}])
    return made


def part_digest(folder: Path, rows: list[dict[str, Any]]) -> str:
    """Return the sha256 of the file that holds these rows."""
    write_table(folder / "part.arrow", pa.Table.from_pylist(rows, schema=SCHEMA))
    return hash_file(folder / "part.arrow")


def _values(raw: bytes, file: DataFile, encoder: Any, taken: dict[str, str]) -> dict[str, Any]:
    record = parse_record(raw, file.stem)
    (encoded,) = encoder.encode_many([record])
    if isinstance(encoded, BadRow):
        encoded.encoding = True  # pyright: ignore[reportAttributeAccessIssue]
        raise encoded
    identity = record.id
    if identity is None:
        plain = json.dumps([[turn.role, turn.content] for turn in record.turns], ensure_ascii=False).encode()
        turns = json.dumps(json.loads(plain), ensure_ascii=False, separators=(",", ":")).encode()
        content, occurrence = hashlib.sha256(turns).hexdigest()[:32], 1
        while f"{content}#{occurrence}" in taken:
            occurrence += 1
        identity = f"{content}#{occurrence}"
    elif identity in taken:
        reason = f"the id was used before, at {taken[identity]}"
        if taken[identity].rpartition(":")[0] != file.name:
            reason += f"; if each file has its own, name them as {{files: [{file.name}], ids: scoped}}"
        raise BadRow(reason, identity)
    return {
        "id": identity,
        "source": record.source,
        "tokens": len(encoded.input_ids),
        "loss_tokens": encoded.loss_tokens,
        "truncated": encoded.truncated,
        "cut_by_template": encoded.cut_by_template,
        "weight": 1.0,
        "record": raw,
        "input_ids": encoded.input_ids.tolist(),
        "loss_spans": encoded.loss_spans.tolist(),
    }
