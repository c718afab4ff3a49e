"""Budget curves of a run's selections: from what is committed, or from each selector asked again.

The points of a curve are the first n rows of one selection. Whether a selection made for n would hold the same rows is
a property of the method and its limits, so `budget_curves` asks: it makes the selection for another budget as well.

Shape suffixes: M budgets, n chosen rows.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from influray.config_messages import near
from influray.evaluation.budget_curve import budget_grid, measure_curve
from influray.protocols import ArtifactMismatch, ConfigError, DataError
from influray.report.data import CurveFacts, Recheck, SelectionFacts
from influray.report.readings import Readings, open_run
from influray.report.selections import STYLES, Pool, committed
from influray.runtime.selecting import select_and_write
from influray.selectors.api import resolve_budget
from influray.store.attribution import Attribution
from influray.store.column_view import ColumnView, sought
from influray.store.mirror import remove_folder
from influray.store.selection import read_selection


def committed_curves(
    attribution: Attribution | None,
    pool: Pool | None,
    selections: Sequence[SelectionFacts],
    rows: Mapping[str, np.ndarray],
) -> tuple[CurveFacts, ...]:
    """Return the curve of each selection up to its own budget; none without a matrix with a column in use."""
    if attribution is None or pool is None:
        return ()
    return tuple(
        _curve(
            sought(attribution, attribution.groups, {task: limited.role for task, limited in one.limited.items()}),
            pool,
            one.name,
            one.method,
            one.style,
            rows[one.name],
        )
        for one in selections
        if one.balance is not None
    )


def budget_curves(
    run_dir: str | Path, selection: str | None = None, budget: int | float | None = None
) -> tuple[CurveFacts, ...]:
    """Return the curve of a committed selection, or of all where none is named, up to `budget` rows.

    With a `budget` (an integer, or a fraction of the pool's rows) every selector is run for it, and the curve
    is of those rows; without, the curve is of the committed rows and the selector is run for half of them.
    Either way `recheck` tells whether the smaller of the two selections is the beginning of the larger.

    Raises:
        ConfigError: no such selection, a budget that does not fit, or what a selector refuses at it.
        ArtifactMismatch: nothing is selected yet, or there is no attribution matrix with a column in use.
    """
    readings = open_run(run_dir)
    known = committed(readings.run, [selector.name for selector in readings.config.selectors])
    if not known:
        raise ArtifactMismatch(f"{readings.run.path}: nothing is selected yet; run `influray select` first")
    check_selection(selection, known)
    attribution, pool = readings.attribution, readings.pool
    if attribution is None or pool is None:
        raise ArtifactMismatch(f"{readings.run.path}: no attribution matrix there; run `influray score` first")
    roles = readings.config.data.roles
    view = sought(attribution, attribution.groups, roles)
    if not view.stats.used_T.any():
        raise ArtifactMismatch(f"{attribution.folder}: no column can be standardised, so that there is no balance")
    count = check_budget(budget, attribution.shape[0], pool.catalogue.never_scored)
    found = []
    for name in known if selection is None else [selection]:
        chosen = read_selection(readings.run.selection(name))
        rows, recheck = _rechecked(readings, name, chosen.rows, count)
        style = STYLES[known.index(name) % len(STYLES)]
        curve = _curve(view, pool, name, chosen.method, style, rows)
        found.append(replace(curve, examples=len(chosen.rows), recheck=recheck))
    return tuple(found)


def check_selection(selection: str | None, known: Sequence[str]) -> None:
    """Raise ConfigError where a selection is named that is not among the known."""
    if selection is not None and selection not in known:
        hint = near(selection, dict.fromkeys(known))
        raise ConfigError(f"--curve-selection: no selection is called {selection!r}{hint} (known: {', '.join(known)})")


def check_budget(budget: int | float | None, total: int = sys.maxsize, never_scored: int = 0) -> int | None:
    """Return a curve's budget in examples, as `resolve_budget`. Raises ConfigError where it does not fit."""
    try:
        return None if budget is None else resolve_budget(budget, total, never_scored)
    except ConfigError as error:
        raise ConfigError(f"--curve-{error}") from error


def _rechecked(
    readings: Readings, name: str, row_n: np.ndarray, count: int | None
) -> tuple[np.ndarray, Recheck | None]:
    """Return the rows of the curve, and what another budget says of them; no check where there is no other budget."""
    other = len(row_n) // 2 if count is None else count
    if other in (0, len(row_n)):
        return row_n, None
    try:
        again_n = _select(readings, name, other)
    except (ConfigError, DataError) as error:
        if count is not None:
            raise ConfigError(f"--curve-budget: selection {name} for {count} examples: {error}") from error
        return row_n, Recheck(other, 0, 0, str(error))
    compared = min(len(row_n), len(again_n))
    differs = np.flatnonzero(row_n[:compared] != again_n[:compared])
    recheck = Recheck(len(again_n), int(differs[0]) if len(differs) else compared, compared)
    return (row_n if count is None else again_n), recheck


def _select(readings: Readings, name: str, count: int) -> np.ndarray:
    """Return the rows that a selector of the config chooses for another budget, int64 in order of choice."""
    # As every selection is made, with all its limits and facts, but under a hidden name that is removed again.
    selector = next(one for one in readings.config.selectors if one.name == name)
    hidden = f".curve-{name}"
    folder = readings.run.selection(hidden)
    try:
        changed = {**selector.model_dump(mode="json"), "name": hidden, "budget": count}
        select_and_write(readings.run.path, changed, "curve", roles=readings.config.data.roles)
        return read_selection(folder).rows
    finally:
        remove_folder(folder)


def _curve(view: ColumnView, pool: Pool, name: str, method: str, style: str, row_n: np.ndarray) -> CurveFacts:
    grid = budget_grid(len(row_n))
    try:
        curve = measure_curve(view, view.stats, view.groups, row_n, grid)
    except DataError as error:
        raise ArtifactMismatch(f"selection {name}: {error}; run `influray select` again") from error
    token_n = np.cumsum(pool.token_N[row_n])
    return CurveFacts(name, method, style, len(row_n), view.shape[0], curve, token_n[grid - 1])
