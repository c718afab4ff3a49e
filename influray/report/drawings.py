"""Drawings that the report and a comparison share."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from markupsafe import Markup

from influray.formatting import number
from influray.report.data import Over, Tuned
from influray.report.evaluations import BASE
from influray.report.figures import Series, heat_map


def overlap_map(labels: Sequence[str], values: Sequence[Sequence[float]], ident: str, title: str) -> Markup:
    """Return the heat map of a matrix of likeness; that a selection equals itself needs no shade."""
    return heat_map(
        labels,
        labels,
        [[None if i == j else value for j, value in enumerate(line)] for i, line in enumerate(values)],
        [[number(value) for value in line] for line in values],
        ident=ident,
        title=title,
        full=1.0,
    )


def over_seeds(label: str, one: Tuned, values: Mapping[str, Over], tasks: Sequence[str], scale: float) -> Series:
    """Return one number a task, times `scale`: the mean over seeds, and the ends where there are several."""
    found = [values.get(task) for task in tasks]
    several = len(one.seeds) > 1
    return Series(
        label,
        one.style,
        [None if v is None else v.mean * scale for v in found],
        [None if v is None else v.low * scale for v in found] if several else (),
        [None if v is None else v.high * scale for v in found] if several else (),
        hollow=one.name == BASE,
    )
