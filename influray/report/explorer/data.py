"""What the explorer page shows, as plain JSON: the numbers of a run at every budget, and pages of chosen rows.

Texts of the pool stand here as they are; the page makes them safe when it shows them.

Shape suffixes: N rows of the attribution matrix, C columns in use, G tasks with one, M budgets, S sources told apart,
H bins.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from influray.evaluation.budget_curve import budget_grid
from influray.evaluation.known_answer import task_scores
from influray.evaluation.prefixes import Prefixes, count_bins, measure_prefixes, shared_prefixes
from influray.report.collect import collect
from influray.report.data import ReportData, SelectionFacts, Tuned, normalised_entropy
from influray.report.explorer.rows import check_page, open_chosen
from influray.report.readings import open_run
from influray.report.selections import largest_sources
from influray.store.column_view import ColumnView, sought
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_selection

POINTS = 16  # budgets that the page can be set to, besides the sizes of the selections
SOURCES = 12  # told apart in the flow; the rest is summed up
BINS = 32
LOWEST, HIGHEST = -4.0, 8.0  # ends of the distributions at most, in standard deviations
TARGET_NUMBERS = 60_000  # AID by single target: budgets x selections x targets that the page carries at most
LEFT_OUT = 50  # targets without part that are named


def overview(run_dir: str | Path) -> dict[str, Any]:
    """Return all numbers of the page. Raises as `influray.report.collect.collect`.

    Keys: name, title, made, model, finding, pool, tasks, sources, budgets [M], selections, shared, targets, edges
    [H + 1], pool_bins [G][H], tuned, quarantine, left_out, steps, versions, host, missing. Whatever depends on the
    budget has M entries, or for a selection as many as there are budgets up to its size. Without a matrix `tasks` is
    empty.
    """
    return overview_of(collect(run_dir), run_dir)


def overview_of(data: ReportData, run_dir: str | Path) -> dict[str, Any]:
    """Return the numbers of the page of a run whose report is `data`."""
    run, sizes = RunDirectory(run_dir), [one.examples for one in data.selections]
    budgets = np.unique([*budget_grid(max(sizes), POINTS), *sizes]) if sizes else np.zeros(0, np.int64)
    rows = {one.name: read_selection(run.selection(one.name)).rows for one in data.selections}
    sources = _sources(data)
    found: dict[str, Any] = {
        "name": data.name,
        "title": data.title,
        "made": data.made,
        "model": data.model,
        "finding": list(data.finding),
        "pool": None if data.pool is None else {"rows": data.pool.rows, "tokens": data.pool.tokens},
        "tasks": [],
        "sources": [{"name": name, "rows": count} for name, count in sources],
        "budgets": budgets.tolist(),
        "selections": [_selection(one) for one in data.selections],
        "shared": [
            [shared_prefixes(rows[a.name], rows[b.name], budgets).tolist() for b in data.selections]
            for a in data.selections
        ],
        "targets": [],
        "edges": [],
        "pool_bins": [],
        "tuned": {one.name: _tuned(one) for one in data.tuned},
        "quarantine": None if data.quarantine is None else asdict(data.quarantine),
        "left_out": {"total": len(data.left_out), "first": [asdict(one) for one in data.left_out[:LEFT_OUT]]},
        "steps": [
            {"name": step.name, "status": step.status, "seconds": step.seconds, **_counts(step.facts)}
            for step in data.steps
        ],
        "versions": dict(data.versions),
        "host": dict(data.host),
        "missing": dict(data.missing),
    }
    readings = open_run(run_dir)
    attribution = readings.attribution
    if attribution is not None and data.pool is not None:
        view = sought(attribution, attribution.groups, readings.config.data.roles)
        if view.stats.used_T.any():
            _add_influence(found, view, attribution.target_ids, data, rows, _labels(run_dir, data, sources))
    return found


def chosen_rows(
    run_dir: str | Path,
    selection: str,
    *,
    text: str = "",
    source: str = "",
    task: str = "",
    sort: str = "rank",
    offset: int = 0,
    limit: int = 50,
    budget: int = 0,
) -> dict[str, Any]:
    """Return {"total", "variants", "rows"}: one page of the rows of a selection that fit, and how many fit.

    `variants` is of how many runs with other seeds or targets a row's chosen_in counts; both None where unknown.
    A row has rank (from 1), row, id, source, merit, task, target_id (of the target that won it, "" where the method
    names none), text and cut (whether the text goes on). Filters as in `ChosenRows.find`.

    Raises:
        ConfigError: no such selection, or a page that cannot be.
        ArtifactMismatch: the selection cannot be read.
    """
    check_page(text, sort, offset, limit, budget)
    chosen = open_chosen(run_dir, selection)
    place_n = chosen.find(text=text, source=source, task=task, sort=sort, budget=budget)
    page = place_n[offset : offset + limit].tolist()
    return {
        "total": len(place_n),
        "variants": chosen.variants,
        "rows": [{**chosen.facts(place), **chosen.text(place)} for place in page],
    }


def _selection(one: SelectionFacts) -> dict[str, Any]:
    names = ("name", "method", "options", "seed", "style", "examples", "tokens", "duplicates", "sources", "winners")
    options = {name: str(value) for name, value in one.options.items()}
    roles = {task: {"role": limit.role, "mean": short(limit.mean)} for task, limit in one.limited.items()}
    return {name: getattr(one, name) for name in names} | {"options": options, "roles": roles}


def _tuned(one: Tuned) -> dict[str, float | str | None]:
    exact = None if one.macro_exact is None else short(one.macro_exact.mean)
    return {"loss": short(one.macro_loss.mean), "exact": exact, "metric": one.exact_name}


def _counts(facts: Mapping[str, Any]) -> dict[str, Any]:
    names = ("rows", "tokens", "rows_per_second", "tokens_per_second", "started")
    return {name: facts[name] for name in names if isinstance(facts.get(name), str | int | float)}


def _sources(data: ReportData) -> list[tuple[str, int]]:
    """The sources that the flow tells apart with their rows in the pool, and one line for all others.

    They are those of which some selection, or the pool, has the largest shares.
    """
    if data.pool is None:
        return []
    pool = data.pool.sources
    sides = [(pool, data.pool.rows), *((one.sources, one.examples) for one in data.selections)]
    others = set(largest_sources(sides, SOURCES)[1])
    told = [(name, pool[name]) for name in pool if name not in others]
    return [*told, *([(f"{len(others)} other sources", sum(pool[name] for name in others))] if others else [])]


def _labels(run_dir: str | Path, data: ReportData, sources: Sequence[tuple[str, int]]) -> dict[str, np.ndarray]:
    """The place in `sources` of each row of each selection, in order of choice."""
    place = {name: s for s, (name, _) in enumerate(sources)}
    found = {}
    for one in data.selections:
        column = open_chosen(run_dir, one.name).source_n
        code_of = np.array([place.get(name, len(sources) - 1) for name in column.dictionary.to_pylist()])
        found[one.name] = code_of[column.indices.to_numpy(zero_copy_only=False)]
    return found


def _add_influence(
    found: dict[str, Any],
    view: ColumnView,
    target_ids: Sequence[str],
    data: ReportData,
    rows: Mapping[str, np.ndarray],
    labels: Mapping[str, np.ndarray],
) -> None:
    """Put in what needs the matrix: distributions over the pool, and per selection what its prefixes give."""
    names, _, score_NG = task_scores(view, view.groups, view.stats)
    known_G = np.flatnonzero(np.isfinite(score_NG[0]))  # of a task without a column in use every score is NaN
    score_NG = score_NG[:, known_G]
    tasks = [names[g] for g in known_G.tolist()]
    low = max(LOWEST, float(np.floor(2 * score_NG.min()) / 2))
    high = min(HIGHEST, float(np.ceil(2 * score_NG.max()) / 2))
    edges_H = np.linspace(low, max(high, low + 1), BINS + 1)
    found["tasks"] = [{"name": task.name, "columns": task.columns, "used": task.used} for task in data.tasks]
    found["tasks"] = [task for task in found["tasks"] if task["name"] in tasks]
    found["edges"] = [short(edge) for edge in edges_H.tolist()]
    found["pool_bins"] = count_bins(score_NG, edges_H).tolist()
    budgets = np.array(found["budgets"], np.int64)
    kept_C = None
    for entry, one in zip(found["selections"], data.selections, strict=True):
        mine = budgets[budgets <= one.examples]
        label_n = labels[one.name]
        prefixes = measure_prefixes(
            view,
            view.stats,
            view.groups,
            rows[one.name],
            label_n,
            len(found["sources"]),
            mine,
            edges_H,
        )
        assert list(prefixes.tasks) == tasks, "the tasks with a column in use are one and the same"
        if kept_C is None:
            kept_C = _kept_targets(prefixes, len(data.selections) * len(budgets))
            column = prefixes.column_C[kept_C]
            found["targets"] = [
                {"task": int(g), "id": target_ids[int(view.column_C[j])]}
                for g, j in zip(prefixes.task_C[kept_C], column, strict=True)
            ]
        entry["at"] = _at(prefixes, kept_C)


def _kept_targets(prefixes: Prefixes, points: int) -> np.ndarray:
    """The columns whose own AID the page carries: evenly many of each task, the first ones, within TARGET_NUMBERS."""
    each = max(1, TARGET_NUMBERS // (points * len(prefixes.tasks)))
    kept = [np.flatnonzero(prefixes.task_C == g)[:each] for g in range(len(prefixes.tasks))]
    return np.concatenate(kept)


def _at(prefixes: Prefixes, kept_C: np.ndarray) -> dict[str, Any]:
    """What the page needs of a selection, by budget: AID (mean and deviation over all targets), THI, flow, bins."""
    aid, std = [], []
    for g in range(len(prefixes.tasks)):
        value_MC = prefixes.aid_MC[:, prefixes.task_C == g]
        aid.append(value_MC.mean(axis=1))
        std.append(value_MC.std(axis=1))
    thi_MG = prefixes.flow_MSG.sum(axis=1)
    return {
        "aid": _shortened(np.stack(aid, axis=1)),
        "std": _shortened(np.stack(std, axis=1)),
        "targets": _shortened(prefixes.aid_MC[:, kept_C]),
        "thi": thi_MG.tolist(),
        "instance": prefixes.instance_MG.tolist(),
        "entropy": [short(normalised_entropy(line)) for line in thi_MG.tolist()],
        "flow": prefixes.flow_MSG.tolist(),
        "bins": prefixes.bins_MGH.tolist(),
    }


def _shortened(values: np.ndarray) -> list[list[float]]:
    return [[short(value) for value in line] for line in values.tolist()]


def short(value: float) -> float:
    """Return a number to six digits, in few characters: a page rounds it once more, to fewer."""
    return float(f"{value:.6g}")
