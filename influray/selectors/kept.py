"""Whether a selection satisfies its limits: checked once for every selector's result, plug-ins included.

Shape suffix: n chosen rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from influray.protocols import Bounds, ConfigError, Selection, SelectionProblem
from influray.registry import METHODS, SELECTORS
from influray.selectors.duplicates import NearDuplicates
from influray.selectors.normalisers import row_tasks
from influray.selectors.roles import first_broken, named


def require_kept(selection: Selection, problem: SelectionProblem, method: str) -> None:
    """Raise ConfigError where a selection is none of this problem, or breaks one of its limits.

    The order of the checks is that of the limits; all but near-duplicates cost a look at the chosen rows. Those are
    compared for plug-ins alone: influray's own selectors let no row in that was not compared (selectors.admission), and
    comparing again would double the cost of a selection.
    """
    wrong = next(_broken(selection, problem, method), None)
    if wrong is not None:
        raise ConfigError(f"method: {method!r} {wrong}; this is an error of the method, not of the config")


def _broken(selection: Selection, problem: SelectionProblem, method: str) -> Iterator[str]:
    rows = np.asarray(selection.rows)
    limits = problem.limits
    wanted = len(rows) if limits.tokens is not None else problem.budget
    right = len(rows) == len(selection.merit) == len(selection.column) == wanted and len(np.unique(rows)) == wanted
    if not right or not np.isin(rows, problem.attribution.rows).all():
        yield f"did not return {wanted} different rows of the matrix with a merit and a column each"
        return
    place_n = np.searchsorted(problem.attribution.rows, rows)
    if limits.tokens is not None:
        tokens = int(np.asarray(problem.facts["tokens"], np.int64)[place_n].sum())
        if tokens > limits.tokens:
            yield f"chose rows of {tokens} tokens, and budget.tokens is {limits.tokens}"
    if limits.include or limits.exclude:
        ids = problem.facts["id"]
        chosen = {str(ids[place]) for place in place_n.tolist()}
        barred = next((one for one in limits.exclude if one in chosen), None)
        if barred is not None:
            yield f"chose the id {barred!r}, which constraints.exclude bars"
        missing = next((one for one in limits.include if one not in chosen), None)
        if missing is not None:
            yield f"did not choose the id {missing!r}, which constraints.include asks for"
    if limits.sources:
        yield from _out_of_bounds("constraints.sources", problem.facts["source"], place_n, limits.sources)
    if limits.tasks:
        task_N = row_tasks(problem.attribution, problem.groups)
        yield from _out_of_bounds("constraints.tasks", task_N, place_n, limits.tasks)
    if problem.role_limits:
        forced = set(limits.include)
        given = sum(str(problem.facts["id"][place]) in forced for place in place_n.tolist()) if forced else 0
        broken = first_broken(problem.role_limits, place_n, given)
        if broken is not None:
            limit, count, total = broken
            yield f"chose {count} rows whose standardised influence on {named(limit)} sums to {total:+.3g}"
    if limits.near_duplicates is not None and method not in SELECTORS and method not in METHODS:
        yield from _near(rows, place_n, problem)


def _out_of_bounds(key: str, name_N: Sequence[Any], place_n: np.ndarray, bounds: Mapping[str, Bounds]) -> Iterator[str]:
    count = Counter(str(name_N[place]) for place in place_n.tolist())
    for name, (low, high) in bounds.items():
        if count[name] < low:
            yield f"chose {count[name]} rows of {name!r}, and {key}.{name}.min is {low}"
        if high is not None and count[name] > high:
            yield f"chose {count[name]} rows of {name!r}, and {key}.{name}.max is {high}"


def _near(rows: np.ndarray, place_n: np.ndarray, problem: SelectionProblem) -> Iterator[str]:
    assert problem.features is not None
    assert problem.limits.near_duplicates is not None
    ids, forced = problem.facts.get("id"), set(problem.limits.include)
    chosen = NearDuplicates(problem.features, problem.limits.near_duplicates, problem.attribution.rows)
    for row, place in zip(rows.tolist(), place_n.tolist(), strict=True):
        other = None if ids is not None and str(ids[place]) in forced else chosen.find(row)
        if other is not None:
            yield f"chose row {row}, a near-duplicate of row {other} (constraints.near_duplicates)"
        chosen.add(row)
