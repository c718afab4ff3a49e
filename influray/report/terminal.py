"""Fitting tables to the width of a terminal: names are shortened first, then a table is cut between its columns."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence

from rich.cells import cell_len

from influray.report.sheet import Table

SHORTEST = 12  # letters to which a name is shortened at most: cells of AID are as wide
GAP = 2  # between two columns
NARROWEST = 16  # of a first column that folds to keep a table whole
_JOINT = re.compile(r"([-_/. ]+)")


def fit(tables: Sequence[Table], width: int, names: Collection[str]) -> tuple[list[Table], dict[str, str]]:
    """Return the tables, none wider than `width`, and short name -> name for those of `names` that were shortened.

    Only heads of columns are shortened, never what names a row; a table that is still too wide becomes several, each
    with the first column again. A first column takes half of the width at most, and folds.
    """
    longest = max((cell_len(name) for name in names), default=0)
    headed = [table for table in tables if not set(names).isdisjoint(table.columns[1:])]
    most = next((m for m in range(longest, SHORTEST, -1) if all(_fits(t, width, names, m) for t in headed)), SHORTEST)
    short = abbreviate(names, most)
    heads = {head for table in tables for head in table.columns[1:]}
    found = [part for table in tables for part in _cut(_renamed(table, short), width)]
    return found, {short[name]: name for name in names if short[name] != name and name in heads}


def abbreviate(names: Collection[str], most: int) -> dict[str, str]:
    """Return name -> a name of at most `most` characters, all different; those that fit stay as they are.

    The words of a name are cut to their beginnings; where two names come out alike they are numbered.
    """
    found: dict[str, str] = {}
    taken = {name for name in names if cell_len(name) <= most}
    for name in names:
        short, number = (name if name in taken else _initials(name, most)), 2
        while name not in taken and short in taken | set(found.values()):
            mark = f"~{number}"
            short, number = _initials(name, most - len(mark)) + mark, number + 1
        found[name] = short
    return found


def _initials(name: str, most: int) -> str:
    pieces = _JOINT.split(name)
    for letters in range(max(len(piece) for piece in pieces), 0, -1):
        short = "".join(piece if n % 2 else piece[:letters] for n, piece in enumerate(pieces))
        if cell_len(short) <= most:
            return short
    return name[: max(1, most)]


def _renamed(table: Table, short: Mapping[str, str]) -> Table:
    first, *others = table.columns
    return Table(table.title, (first, *(short.get(head, head) for head in others)), table.rows)


def _fits(table: Table, width: int, names: Collection[str], most: int) -> bool:
    widths = _widths(table, width)
    heads = [min(cell_len(head), most) if head in names else cell_len(head) for head in table.columns]
    cells = [max((cell_len(row[c]) for row in table.rows), default=0) for c in range(len(heads))]
    return widths[0] + sum(max(h, c) + GAP for h, c in zip(heads[1:], cells[1:], strict=True)) <= width


def _widths(table: Table, width: int) -> list[int]:
    lines = (table.columns, *table.rows)
    found = [max(cell_len(line[c]) for line in lines) for c in range(len(table.columns))]
    return [min(found[0], width // 2), *found[1:]]


def _cut(table: Table, width: int) -> list[Table]:
    """Return the table in parts of whole columns; a part holds one at least.

    It stays whole where the first column can fold to `NARROWEST` for it.
    """
    first, *others = _widths(table, width)
    room = width - sum(GAP + wide for wide in others)
    first = room if NARROWEST <= room < first else first
    parts: list[list[int]] = [[]]
    used = first
    for column, wide in enumerate(others, start=1):
        if parts[-1] and used + GAP + wide > width:
            parts.append([])
            used = first
        parts[-1].append(column)
        used += GAP + wide
    if len(parts) == 1:
        return [table]
    return [
        Table(
            table.title if n == 0 else f"{table.title}, continued",
            tuple(table.columns[c] for c in (0, *part)),
            tuple(tuple(row[c] for c in (0, *part)) for row in table.rows),
        )
        for n, part in enumerate(parts)
    ]
