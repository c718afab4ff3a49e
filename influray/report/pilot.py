"""What `influray pilot` found: a line a recipe, a figure of cost against what is kept, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray import formatting
from influray.formatting import ABSENT
from influray.report.figures import Series, dots
from influray.report.intervals import interval
from influray.report.sheet import Figure, Table

READING = (
    "Hours: of a worker, from the data to the selections for the whole pool, by the arithmetic of `influray plan`; "
    "cost: their share of the full recipe's. Ranks: Spearman's correlation over rows of the influence on a task, mean "
    "over tasks. Rows: of the full recipe's, how many are chosen too. Merit: mean standardised influence of what is "
    "chosen, as the full recipe has it, over that of its own choice; 0 for random rows. `other seeds` is the full "
    "recipe once more: no other can be told to agree better with it."
)


def pilot_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return a line for every recipe, the cheapest first: what it keeps and costs, the losses, what it changes."""
    lines = sorted(found["recipes"], key=lambda one: one["worker_seconds"] or 0.0)
    whole = next(one for one in lines if one["name"] == "full")["worker_seconds"]
    kept = []
    for one in lines:
        seconds = one["worker_seconds"]
        cost = (f"{seconds / 3600:.2g}", formatting.percent(seconds / whole)) if seconds and whole else (ABSENT, ABSENT)
        marked = one["name"] + (" *" if one["name"] == found["cheapest"] else "")
        shares = map(formatting.percent, (one["overlap"], one["merit"]))
        kept.append((marked, *cost, formatting.number(one["correlation"]), *shares))
    rows = f"{formatting.count(found['rows'])} of {formatting.count(found['pool'])} rows"
    columns = ("recipe", "hours", "cost", "ranks", "rows", "merit")
    tables = [Table(f"Recipes on {rows}, {found['selector']}", columns, tuple(kept))]
    if (drawn := found.get("random")) is not None:
        tuned = [*lines, {"name": "random rows", **drawn}]
        losses = [(one["name"], formatting.number(one["loss"], 3), _over_full(one["loss_less_full"])) for one in tuned]
        tables.append(Table("Loss after tuning", ("recipe", "loss", "less the full one's"), tuple(losses)))
    changes = [
        (one["name"], "; ".join(f"{key}: {_plain(value)}" for key, value in one["settings"].items()))
        for one in lines
        if one["settings"]
    ]
    return [*tables, Table("What the recipes change", ("recipe", "settings"), tuple(changes))]


def _over_full(less: Mapping[str, Any]) -> str:
    if not less["value"] and less["interval"] is None:
        return ""
    return formatting.signed(less["value"], 3) if less["interval"] is None else interval(less, True, 3)


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {_plain(one)}" for key, one in value.items()) + "}"
    return f"{value}"


def pilot_figures(found: Mapping[str, Any]) -> list[Figure]:
    """Return the cost of every recipe, the cheapest first, and what it keeps, as shares of the full one."""
    lines = sorted(found["recipes"], key=lambda one: one["worker_seconds"] or 0.0)
    whole = next(one for one in lines if one["name"] == "full")["worker_seconds"]
    if not whole:
        return []
    series = [
        Series("cost", "cg", [one["worker_seconds"] / whole for one in lines]),
        Series("merit kept", "c0", [one["merit"] for one in lines]),
        Series("rows kept", "c1", [one["overlap"] for one in lines]),
    ]
    names = [one["name"] for one in lines]
    drawing = dots(names, series, ident="pilot", title="Recipes", axis="share of the full recipe", reference=0.0)
    return [Figure("Cheaper recipes: what each costs, and what it keeps of the full one's choice", drawing)]


def pilot_notes(found: Mapping[str, Any]) -> list[str]:
    """Return how to read them."""
    least = formatting.percent(found["least"])
    if found["cheapest"] is None:
        notes = [READING, f"No cheaper recipe keeps {least} of the merit on this sample."]
    else:
        notes = [READING, f"* {found['cheapest']}: the cheapest that keeps {least} of the merit on this sample."]
    if "random" in found:
        seeds = len(found["tuning_seeds"])
        kind = "test records" if found["records"] == "test" else "targets, which the scores have seen"
        notes.append(
            f"Loss: mean over tasks on {kind}, after tuning on what is chosen from the sample, {seeds} "
            f"{'seed' if seeds == 1 else 'seeds'}; 95 % intervals over the seeds."
        )
    return notes
