"""The report as one HTML page: no network, no script, styles and figures inline.

Everything from the pool is hostile: the template engine escapes it, and what could steer how the page reads
(controls, direction marks) is written out over the whole page at the end, so no path around it exists.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from influray import formatting
from influray.evaluation.harm import NO_HARM
from influray.report.audit import audit_tables
from influray.report.collect import collect
from influray.report.compare import Entry
from influray.report.compare_sheet import overlap_map, result_dots
from influray.report.curve_sheet import curve_figures, knees, numbers_of
from influray.report.data import Example, Quantiles, ReportData, Step, TaskExamples, Tuned, labelled
from influray.report.evaluations import BASE
from influray.report.explorer.page import write_explorer
from influray.report.figures import Interval, Series, bullet, dots, heat_map, intervals
from influray.report.selections import largest_sources
from influray.report.templating import environment, style_sheet
from influray.store.artifact import write_bytes
from influray.store.run_directory import RunDirectory

SOURCES = 40  # rows of the table of sources; the rest is summed up
SNIPPET = 240  # characters of a turn that show before it is opened
# Facts of a step that have a column of their own or that nobody reads.
SHOWN_FACTS = {"status", "seconds", "started", "fingerprint", "rows", "tokens", "rows_per_second", "tokens_per_second"}


def write_report(run_dir: str | Path) -> Path:
    """Write RUN/report/index.html and explorer.html beside it; return the path of the former. Raises as `collect`."""
    path, data = RunDirectory(run_dir).report, collect(run_dir)
    write_explorer(run_dir, data)
    write_bytes(path, render(data).encode("utf-8"))
    return path


def render(data: ReportData) -> str:
    """Return the page: HTML that needs nothing beside it. The same data give the same bytes."""
    page = (
        environment()
        .get_template("index.html.j2")
        .render(
            data=data,
            style=style_sheet(),
            results=_results(data.tuned),
            seeds=max((len(one.seeds) for one in data.tuned), default=0) > 1,
            sources=_sources(data),
            lengths=_lengths(data),
            balance=_balance(data),
            curves=_curves(data),
            tuned=_tuned(data),
            examples=[_task_examples(task) for task in data.examples],
            known_bullet=lambda auc: bullet(auc, 1.0, "c0", 0.5),
            steps=_steps(data.steps),
            audit_tables=audit_tables(dict(data.audit)) if data.audit else [],
        )
    )
    return formatting.visible(page)


def _sources(data: ReportData) -> list[dict[str, Any]]:
    """Rows of the table of sources: share in the pool, and per selection share, times the pool's share, bar."""
    if data.pool is None or not data.selections:
        return []
    pool = data.pool
    sides = [(pool.sources, pool.rows), *((one.sources, one.examples) for one in data.selections)]
    rest = set(largest_sources(sides, SOURCES)[1])
    lines = [(source, {source}, rows) for source, rows in pool.sources.items() if source not in rest]
    if rest:
        lines.append((f"{len(rest)} more sources", rest, sum(pool.sources[source] for source in rest)))
    shares = [
        [sum(s.sources.get(source, 0) for source in members) / s.examples for s in data.selections]
        for _, members, _ in lines
    ]
    most = max([rows / pool.rows for _, _, rows in lines] + [share for line in shares for share in line])
    return [
        {
            "name": name or "(no source)",
            "rows": rows,
            "share": rows / pool.rows,
            "cells": [
                {
                    "share": share,
                    "times": share / (rows / pool.rows),
                    "bar": bullet(share, most, selection.style, rows / pool.rows),
                }
                for share, selection in zip(line, data.selections, strict=True)
            ],
        }
        for (name, _, rows), line in zip(lines, shares, strict=True)
    ]


def _lengths(data: ReportData) -> Markup:
    if data.pool is None or not data.selections:
        return Markup("")

    def row(label: str, style: str, q: Quantiles) -> Interval:
        return Interval(label, style, *vars(q).values())

    rows = [row("pool", "cg", data.pool.lengths), *(row(s.name, s.style, s.lengths) for s in data.selections)]
    return intervals(
        rows, ident="lengths", title="Length of the chosen examples", axis="tokens per example", reference=0.0
    )


def _balance(data: ReportData) -> dict[str, Any] | None:
    """Figures of AID and THI by task, and the overlap of the selections."""
    known = [(s, s.balance) for s in data.selections if s.balance is not None]
    if not known:
        return None
    tasks = list(known[0][1].aid)
    names = [s.name for s, _ in known]
    series = [Series(s.name, s.style, [b.aid[t] for t in tasks]) for s, b in known]
    won = [s for s, _ in known if s.winners]
    axis = "standard deviations of influence above the pool's mean"
    everyone = [s.name for s in data.selections]
    return {
        "tasks": tasks,
        "known": known,
        "limited": list(dict.fromkeys((t, limit.role) for s, _ in known for t, limit in s.limited.items())),
        "aid": dots(tasks, series, ident="aid", title="AID by task", axis=axis, reference=0.0, stems=True),
        "thi_task": _shares(tasks, names, [b.thi_task for _, b in known], "thi-task", "THI by task"),
        "winners": _shares(tasks, [s.name for s in won], [s.winners for s in won], "winners", "Task that won the row"),
        "overlap": overlap_map(everyone, data.overlap.jaccard, "overlap", "Overlap of the selections (Jaccard)"),
        "ranked": overlap_map(everyone, data.overlap.ranked, "ranked", "Rank-biased overlap of the selections"),
    }


def _curves(data: ReportData) -> dict[str, Any] | None:
    if not data.curves:
        return None
    return {
        "figures": curve_figures(data.curves),
        "knees": knees(data.curves),
        "numbers": [numbers_of(one) for one in data.curves],
    }


def _shares(
    tasks: Sequence[str], names: Sequence[str], counts: Sequence[Mapping[str, int]], ident: str, title: str
) -> Markup:
    if not names:
        return Markup("")
    totals = [sum(one.values()) for one in counts]
    values = [[one.get(task, 0) / total for one, total in zip(counts, totals, strict=True)] for task in tasks]
    texts = [[formatting.percent(value, 0) for value in line] for line in values]
    # Even shares look pale and a task that took half of the rows or more looks full, on every page alike.
    return heat_map(tasks, names, values, texts, ident=ident, title=title, full=0.5)


def _results(tuned: Sequence[Tuned]) -> Markup:
    """Return the figure of the head: answer loss of every tuned model, the best first."""
    rows = []
    for one in sorted(tuned, key=lambda one: one.macro_loss.mean):
        tasks = [value.mean for task, value in one.loss.items() if task not in one.roles]
        loss = one.macro_loss
        rows.append(Interval(one.name, one.style, min(tasks), loss.low, loss.mean, loss.high, max(tasks), tasks))
    axis = "answer loss on the tests, lower is better"
    return intervals(rows, ident="results", title="Answer loss after fine-tuning", axis=axis, reference=0.0)


def _tuned(data: ReportData) -> dict[str, Any] | None:
    if not data.tuned:
        return None
    base = next((one for one in data.tuned if one.name == BASE), None)
    loss, exact = result_dots([(one.name, one) for one in data.tuned])
    return {
        "forced": data.tuned[0].exact_metric == "teacher_forced",
        "exact_name": data.tuned[0].exact_name,
        "rows": [Entry(one.name, None, one, base) for one in data.tuned],
        "tasks": [(task, labelled(task, data.tuned[0].roles.get(task))) for task in data.tuned[0].loss],
        "seeds": sorted({seed for one in data.tuned for seed in one.seeds if one.name != BASE}),
        "loss": loss,
        "exact": exact,
    }


def _task_examples(task: TaskExamples) -> dict[str, Any]:
    return {
        "task": task.task,
        "lists": [
            ("Most helpful", [_example(one) for one in task.helpful], ""),
            ("Most harmful", [_example(one) for one in task.harmful], NO_HARM),
        ],
    }


def _example(one: Example) -> dict[str, Any]:
    """An example with the beginnings of its first prompt and of its last answer."""
    prompt = next((text for role, text in one.turns if role not in ("system", "developer")), "")
    answer = next((text for role, text in reversed(one.turns) if role == "assistant"), "")
    short = [(role, _beginning(text)) for role, text in (("user", prompt), ("assistant", answer))]
    whole = len(one.turns) == 2 and all(len(text) <= SNIPPET for _, text in one.turns)
    return {"one": one, "short": short, "whole": whole}


def _beginning(text: str) -> str:
    return text if len(text) <= SNIPPET else text[:SNIPPET].rstrip() + " \u2026"


def _steps(steps: Sequence[Step]) -> list[dict[str, Any]]:
    most = max((step.seconds or 0.0 for step in steps), default=0.0)
    return [
        {
            "step": step,
            "bar": bullet(step.seconds, most, "c0"),
            "rows": step.facts.get("rows"),
            "tokens": step.facts.get("tokens"),
            "rows_rate": step.facts.get("rows_per_second"),
            "tokens_rate": step.facts.get("tokens_per_second"),
            "other": [
                (name, value)
                for name, value in sorted(step.facts.items())
                if name not in SHOWN_FACTS and isinstance(value, str | int | float)
            ],
        }
        for step in steps
    ]
