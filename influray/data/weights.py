"""A file of ids and weights: which rows of an entry count, and how much."""

from __future__ import annotations

import contextlib
import csv
import functools
import io
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from influray.data.records import identity_of
from influray.data.turns import BadRow, parse_json
from influray.protocols import DataError
from influray.store.artifact import hash_file, map_table
from influray.store.mirror import local, present

Weights = Mapping[str, float]


def weights_digest(path: str | Path, where: str) -> str:
    """Return the hash of a file of weights. Raises DataError naming the dotted key `where` if it is not there."""
    try:
        return hash_file(Path(path))
    except OSError as error:
        raise DataError(f"{where}: {path} cannot be read: {error.strerror}") from error


@functools.lru_cache(8)
def read_weights(address: str, digest: str) -> Weights:
    """Return id -> weight of a file of lines `{"id": .., "weight": ..}`, or of a CSV with these two columns.

    `digest` is the hash of its content, by which it is kept.

    Raises:
        DataError: no such file, a line without id or weight, a weight that is no number from 0 on, an id with two.
    """
    path = present(local(address))
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"weight_of_ids: {path} cannot be read: {error}") from error
    found: dict[str, float] = {}
    lines = _csv_lines(text) if path.suffix in (".csv", ".tsv") else _json_lines(text, path)
    for number, line in lines:
        identity, weight = identity_of(line.get("id")), _number(line.get("weight"))
        if identity is None or weight is None:
            raise DataError(
                f"weight_of_ids: {path}:{number}: expected an id and a weight from 0 on, such as "
                f'{{"id": "row-7", "weight": 0.5}}, found {str(dict(line))[:120]}'
            )
        if found.setdefault(identity, weight) != weight:
            raise DataError(f"weight_of_ids: {path}:{number}: the id {identity!r} has another weight on a line before")
    if not found:
        raise DataError(f"weight_of_ids: {path} holds no line")
    return found


def has_weights(parts: Iterable[Path]) -> bool:
    """Return whether a row of these parts of a catalogue has another weight than 1."""
    return any((map_table(path)["weight"].to_numpy() != 1).any() for path in parts)


def _json_lines(text: str, path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            tree = parse_json(line)
        except BadRow as bad:
            raise DataError(f"weight_of_ids: {path}:{number}: {bad.reason}") from None
        yield number, tree if isinstance(tree, dict) else {"line": line}


def _csv_lines(text: str) -> Iterator[tuple[int, Mapping[str, Any]]]:
    head = text.split("\n", 1)[0]
    rows = csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if "\t" in head else ",")
    for row in rows:
        yield rows.line_num, {str(key): value for key, value in row.items()}


def _number(value: Any) -> float | None:
    """Return a number from 0 on, None for any other value."""
    with contextlib.suppress(ValueError, OverflowError, TypeError):
        number = math.nan if isinstance(value, bool) else float(value)
        return number if 0 <= number < math.inf else None
    return None
