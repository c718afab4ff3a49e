"""What `influray pilot` found: a line a recipe, a figure of cost against what is kept, and how to read them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from influray import formatting
from influray.report.figures import Series, dots
from influray.report.intervals import interval
from influray.report.sheet import Figure, Table

READING = (
    "Cost: worker hours from the data to the selections for the whole pool, by the arithmetic of `influray "
    "plan`. Rank correlation: of the influence on a task over the rows, mean over tasks. Rows kept: of the full "
    "recipe's, how many are chosen too. Merit: mean standardised influence of what is chosen as the full recipe has "
    "it; 0 for random rows. `other seeds` is the full recipe once more: what it keeps is as good as any can be told."
)


def pilot_tables(name: str, found: Mapping[str, Any]) -> list[Table]:
    """Return a line for every recipe, the cheapest first."""
    full = next(one for one in found["recipes"] if one["name"] == "full")

    def line(one: Mapping[str, Any]) -> tuple[str, ...]:
        seconds, whole = one["worker_seconds"], full["worker_seconds"]
        cost = (formatting.ABSENT,) * 2
        if seconds is not None and whole:
            cost = (f"{seconds / 3600:.2g}", formatting.percent(seconds / whole))
        kept = (formatting.number(one["correlation"]), *map(formatting.percent, (one["overlap"], one["merit"])))
        tuned = (formatting.number(one["loss"], 3), _over_full(one["loss_less_full"])) if "loss" in one else ()
        return (one["name"] + (" *" if one["name"] == found["cheapest"] else ""), *cost, *kept, *tuned)

    lines = sorted(found["recipes"], key=lambda one: one["worker_seconds"] or 0.0)
    rows = [line(one) for one in lines]
    columns = ("recipe", "worker hours", "of full", "rank correlation", "rows kept", "merit kept")
    if (drawn := found.get("random")) is not None:
        columns += ("loss", "less the full one's")
        rows.append(
            ("random rows", *[""] * 5, formatting.number(drawn["loss"], 3), _over_full(drawn["loss_less_full"]))
        )
    title = (
        f"Recipes on {formatting.count(found['rows'])} of {formatting.count(found['pool'])} rows, {found['selector']}"
    )
    settings = [
        (one["name"], "; ".join(f"{key}: {_plain(value)}" for key, value in one["settings"].items()))
        for one in lines
        if one["settings"]
    ]
    return [
        Table(title, columns, tuple(rows)),
        Table("What the recipes change", ("recipe", "settings"), tuple(settings)),
    ]


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
