"""What `influray value` found, as tables for a terminal of 80 columns or more, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray import formatting
from influray.report.query_sheet import short, with_texts
from influray.report.sheet import Table

SHOWN = 10  # rows of a table
NAME, TASK = 20, 12  # cells
ALL = "all tasks"
WHY = {"helped far less than the others": "far less", "least helped of its task": "least of task"}


def value_tables(found: Mapping[str, Any], width: int) -> list[Table]:
    """Return what the rows add by task, the copies among them, the first of the best rows, and the shopping list."""
    keys, signed = ("mean", "mean_of_chosen", "gain", "gain_of_pool", "gain_of_best"), formatting.signed
    lines = [(one["task"], *(signed(one[key], 3) for key in keys)) for one in found["tasks"]]
    lines.append((ALL, *(signed(found["mean"][key], 3) for key in keys)))
    number = formatting.count(found["counted"])
    title = f"{number} of {formatting.count(found['rows'])} rows beside {found['selection']} ({found['chosen']} rows)"
    columns = ("task", "mean", "chosen's", "adds", "pool's add", "best add")
    copies = [
        (
            f"{one['kind']}, of {'the pool' if one['of'] == 'pool' else 'each other'}",
            formatting.count(one["rows"]),
            formatting.percent(one["rows"] / found["rows"]),
        )
        for one in found["copies"]["kinds"]
    ]
    best = found["best"]["described"][:SHOWN]
    ranked = [
        (str(rank), signed(one["gain"], 4), short(one["task"], TASK), short(one["id"], NAME))
        for rank, one in enumerate(best, start=1)
    ]
    wanted = found["wanted"]["targets"][:SHOWN]
    listed = [
        (
            short(one["id"], NAME),
            short(one["task"], TASK),
            *(formatting.number(one[key], 1) for key in ("z_of_pool", "z_of_new")),
            str(WHY.get(one["reason"], one["reason"])),
        )
        for one in wanted
    ]
    size = formatting.count(len(found["best"]["ids"]))
    tables = [
        Table(title, columns, tuple(lines)),
        Table("Copies among them", ("kind", "rows", "share"), tuple(copies)),
        with_texts(f"Best rows, {size}", ("", "adds", "most to", "row", "text"), ranked, best, width),
        with_texts("Wanted", ("target", "task", "pool", "new", "why", "text"), listed, wanted, width),
    ]
    return [table for table in tables if table.rows]


def value_notes(found: Mapping[str, Any]) -> list[str]:
    """Return how to read the tables, and what of the rows was left out."""
    notes = [
        "In standard deviations of influence over the run's pool. mean: of the new rows, and of the chosen; the pool's "
        f"is 0. adds: what {formatting.count(found['counted'])} random rows raise the best chosen row of each target "
        "by, mean over targets; pool's add: as many random pool rows that are not chosen; best add: the best subset. "
        "A copy of a chosen row adds nothing.",
        "Wanted: the best z that a row of the pool, and a new row, has for a target; --json has its nearest rows.",
    ]
    if not found["best"]["ids"]:
        notes.append("No new row helps any target more than the chosen rows do.")
    if found["wanted"]["met"]:
        count = len(found["wanted"]["met"])
        notes.append(f"{count} targets that no pool row helped are helped now: {', '.join(found['wanted']['met'][:5])}")
    if found["unusable"]:
        notes.append(f"{formatting.count(found['unusable'])} rows cannot be used; {found['place']}/quarantine.jsonl")
    if found["contaminated"]:
        shown = ", ".join(found["contaminated"][:5])
        notes.append(
            f"{formatting.count(len(found['contaminated']))} rows hold a target or a test record, and are left out of "
            f"what rows add: {shown}"
        )
    return [*notes, *filter(None, [found["copies"]["note"]])]
