"""Budget curves as figures and tables: for the terminal, a page of their own, and the report.

Shape suffixes: M budgets.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influray.evaluation.knee import Knee
from influray.formatting import ABSENT, count, listed, number, percent, signed, tokens
from influray.report.data import CurveFacts, Recheck
from influray.report.figures import Line, lines
from influray.report.sheet import Figure, Section, Sheet, Table, as_html
from influray.store.artifact import SCHEMA, write_bytes, write_json
from influray.store.run_directory import RunDirectory

FEW = 8  # about as many lines of a curve where several are shown
NOTES = (
    "A point is what the first n rows of a selection give; all numbers are standard deviations of influence above the "
    "pool's mean. Coverage: the mean over the targets of the best row chosen. AID: the mean over the rows chosen.",
    "Knee: the budget that stands highest over the straight line from the curve's first point to its range's end; past "
    "it further examples add less than the curve's average (Kneedle, 2011). It belongs to the range shown; for AID of "
    "the worst task that range, and its highest value's, begins with as many rows as there are tasks. Both are curves "
    "of scores; what budgets are worth after training the report says of a method that was tuned with several.",
)


def write_curves(run_dir: str | Path, curves: Sequence[CurveFacts]) -> tuple[Path, Path]:
    """Write RUN/report/curves.html and curves.json and return their paths."""
    run = RunDirectory(run_dir)
    page, numbers = run.report.with_name("curves.html"), run.report.with_name("curves.json")
    write_bytes(page, as_html(curve_sheet(run.path.name, curves)).encode("utf-8"))
    write_json(numbers, {"schema": SCHEMA, "selections": {one.name: as_plain(one) for one in curves}})
    return page, numbers


def curve_sheet(name: str, curves: Sequence[CurveFacts]) -> Sheet:
    """Return the curves of a run: figures, the knees, and the numbers of every budget."""
    several = tuple(numbers_of(one) for one in curves)
    return Sheet(
        f"{name}: budget curves",
        (*NOTES, *rechecks(curves)),
        (Section("By budget", curve_figures(curves), knees(curves)), Section("Numbers", (), several)),
    )


def curve_figures(curves: Sequence[CurveFacts]) -> tuple[Figure, ...]:
    """Return coverage and worst-task AID over the budget, knees ringed."""
    kinds = (
        ("coverage", "Coverage: mean over the targets of the best standardised influence among the rows chosen."),
        ("worst", "AID of the worst task: mean standardised influence of the rows chosen on the task served worst."),
    )
    made = []
    for kind, caption in kinds:
        drawn = []
        for one in curves:
            y_M, knee = (
                (one.curve.coverage_M, one.coverage_knee) if kind == "coverage" else (one.curve.worst, one.worst_knee)
            )
            drawn.append(
                Line(one.name, one.style, list(zip(_floats(one.curve.budget_M), _floats(y_M), strict=True)), knee.index)
            )
        drawing = lines(
            drawn,
            ident=f"curve-{kind}",
            title="Coverage by budget" if kind == "coverage" else "AID of the worst task by budget",
            x_axis="examples",
            y_axis="standard deviations of influence above the pool's mean",
            rule=_rule(curves),
        )
        made.append(Figure(f"{caption} A ring marks the knee of this curve.", drawing))
    return tuple(made)


def knees(curves: Sequence[CurveFacts]) -> tuple[Table, Table]:
    """Return one line a selection of the ends and knees of coverage, and of AID of the worst task with its highest."""
    covered, worst = [], []
    for one in curves:
        end, peak, knee = count(int(one.curve.budget_M[-1])), one.worst_peak, one.coverage_knee.index
        there = ABSENT if knee is None else signed(one.curve.coverage_M[knee])
        covered.append((one.name, end, signed(one.curve.coverage_M[-1]), _at(one, one.coverage_knee), there))
        highest = (signed(one.curve.worst[peak]), count(int(one.curve.budget_M[peak])))
        worst.append((one.name, end, signed(one.curve.worst[-1]), *highest, _at(one, one.worst_knee)))
    return (
        Table("Knee of coverage", ("selection", "examples", "coverage", "knee", "coverage there"), tuple(covered)),
        Table(
            "Knee of the worst task's AID",
            ("selection", "examples", "worst AID", "highest", "highest at", "knee"),
            tuple(worst),
        ),
    )


def numbers_of(one: CurveFacts, few: bool = False) -> Table:
    """Return a line per budget; with `few`, about 8 of them and those of the knees."""
    last = len(one.curve.budget_M) - 1
    knee = {one.coverage_knee.index: "coverage", one.worst_knee.index: "worst AID"}
    if one.coverage_knee.index == one.worst_knee.index:
        knee = {one.coverage_knee.index: "both"}
    places = range(last + 1)
    if few:
        places = sorted({*np.linspace(0, last, FEW).round().astype(int).tolist(), *knee} - {None})
    columns = ("examples", "of pool", "tokens", "coverage", "worst cov.", "macro AID", "worst AID", "worst task")
    return Table(
        f"{one.name} ({one.method})",
        (*columns, "spread", "knee of"),
        tuple(_line(one, m, knee.get(m, "")) for m in places),
    )


def rechecks(curves: Sequence[CurveFacts]) -> list[str]:
    """Return what asking the selectors again has shown, one sentence for all selections of which it is true."""
    told: dict[str, list[str]] = {}
    for one in curves:
        if one.recheck is not None:
            told.setdefault(_told(one.recheck), []).append(one.name)
    return [f"{listed(names)}: {sentence}" for sentence, names in told.items()]


def as_plain(one: CurveFacts) -> dict[str, Any]:
    """Return a curve as plain numbers, one entry of each list a budget."""
    curve = one.curve
    worst = [curve.worst_task(m) for m in range(len(curve.budget_M))]
    by_task: Mapping[str, np.ndarray] = {"aid": curve.aid_MG, "coverage": curve.covered_MG}
    return {
        "method": one.method,
        "committed_examples": one.examples,
        "matrix_rows": one.rows,
        "examples": curve.budget_M.tolist(),
        "tokens": one.tokens_M.tolist(),
        "coverage": curve.coverage_M.tolist(),
        "worst_coverage": curve.worst_covered.tolist(),
        "macro_aid": curve.macro.tolist(),
        "worst_aid": curve.worst.tolist(),
        "worst_task": worst,
        "spread": curve.spread.tolist(),
        "tasks": {
            task: {name: value_MG[:, g].tolist() for name, value_MG in by_task.items()}
            for g, task in enumerate(curve.tasks)
        },
        "knee": {"coverage": _plain_knee(one, one.coverage_knee), "worst_aid": _plain_knee(one, one.worst_knee)},
        "recheck": None if one.recheck is None else vars(one.recheck),
    }


def _line(one: CurveFacts, m: int, knee: str) -> tuple[str, ...]:
    curve, budget = one.curve, int(one.curve.budget_M[m])
    return (
        count(budget),
        percent(budget / one.rows),
        tokens(int(one.tokens_M[m])),
        signed(curve.coverage_M[m]),
        signed(curve.worst_covered[m]),
        signed(curve.macro[m]),
        signed(curve.worst[m]),
        curve.worst_task(m),
        number(curve.spread[m]),
        knee,
    )


def _told(check: Recheck) -> str:
    if check.reason:
        return f"for {check.budget:,} examples it cannot be made ({check.reason}), so the curve is of prefixes only."
    if check.same == check.compared:
        return f"made for {check.budget:,} examples too; the first {check.compared:,} rows are the same."
    return (
        f"made for {check.budget:,} examples too, and different from rank {check.same + 1:,} on: the curve is of "
        "prefixes, which are not the method's choice for smaller budgets."
    )


def _at(one: CurveFacts, knee: Knee) -> str:
    if knee.index is None:
        return f"none: {knee.reason}"
    budget = int(one.curve.budget_M[knee.index])
    return f"{count(budget)} ({percent(budget / one.rows)})"


def _plain_knee(one: CurveFacts, knee: Knee) -> dict[str, Any]:
    budget = None if knee.index is None else int(one.curve.budget_M[knee.index])
    return {"examples": budget, "reason": knee.reason}


def _rule(curves: Sequence[CurveFacts]) -> tuple[float, str] | None:
    """Where the committed selections end, when the curves go beyond and all end at one number."""
    ends = {one.examples for one in curves}
    beyond = any(one.curve.budget_M[-1] > one.examples for one in curves)
    return (float(ends.pop()), "selected") if beyond and len(ends) == 1 else None


def _floats(value_M: np.ndarray) -> list[float]:
    return [float(value) for value in value_M]
