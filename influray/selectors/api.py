"""Selecting in Python: an attribution matrix and the task of each column in, rows in order of choice out."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import Any

import numpy as np

from influray.protocols import AttributionSource, ConfigError, Selection, SelectionProblem, Selector
from influray.registry import METHODS, SELECTORS, resolve, resolve_method
from influray.selectors.options import near
from influray.store.attribution import ArrayAttribution, Attribution


def select(
    attribution: Any,
    groups: Sequence[str] | None,
    budget: int | float,
    *,
    method: str = "bids",
    seed: int = 0,
    rows: Mapping[str, Sequence[Any]] | None = None,
    features: Any = None,
    constraints: Any = None,
    **options: Any,
) -> Selection:
    """Return a selection of `budget` rows, in order of choice.

    Args:
        attribution: array-like [N, T], larger helps more; or the path of RUN/attribution, which is streamed.
        groups: the task of each of the T columns; None takes those that a path has stored.
        budget: an integer is examples; a float in (0, 1] the fraction of N, rounded down.
        method: a selector's name or a published method's (bids, less, ...), or "package.module:Class".
        seed: for the methods that draw.
        rows: per-row facts [N] by name (source, tokens, id), for the methods that read them.
        features, constraints: no method of this version takes any.
        options: of the method; they take precedence over those that a published method's name stands for.

    `rows` of the result are positions in an array and catalogue rows for a path.

    Raises:
        ConfigError: groups, budget, method or options that do not fit.
        DataError: scores that cannot be used.
    """
    for name, value in (("features", features), ("constraints", constraints)):
        if value is not None:
            raise ConfigError(f"{name}: no method of this version takes {name}; leave the argument out")
    source = attribution if _is_source(attribution) else _opened(attribution)
    names = check_groups(source, groups)
    total = source.shape[0]
    facts = dict(rows or {})
    for name, values in facts.items():
        if len(values) != total:
            raise ConfigError(f"rows.{name}: {len(values)} values for {total} rows of the attribution matrix")
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ConfigError(f"seed: found {seed!r}, expected an integer")
    problem = SelectionProblem(source, names, resolve_budget(budget, total), int(seed), facts)
    return run_selector(problem, method, options)


def run_selector(problem: SelectionProblem, method: str, options: Mapping[str, Any]) -> Selection:
    """Return the selection of a method, with the method's name and all its given options on it.

    Raises:
        ConfigError: an unknown method or option, or a plug-in whose result is no selection of this problem.
    """
    if ":" not in method and method not in SELECTORS and method not in METHODS:
        known = {**METHODS, **SELECTORS}
        raise ConfigError(
            f"method: no method is called {method!r}{near(method, known)} (known: {', '.join(sorted(known))})"
        )
    name, preset = resolve_method(method)
    merged = {**preset, **options}
    selection = make_selector(name, merged).select(problem)
    _check(selection, problem, method)
    return replace(selection, method=method, options=merged)


def make_selector(name: str, options: Mapping[str, Any]) -> Selector:
    """Return the selector of a table name or "package.module:Class" with its options.

    Raises:
        ConfigError: no such selector, an option it does not have, or a value it does not take.
    """
    cls = resolve("selectors", name, "method")
    try:
        signature = inspect.signature(cls)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"method: {name!r} is not a class that can be constructed: {error}") from error
    known = {n: p for n, p in signature.parameters.items() if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)}
    if not any(p.kind is p.VAR_KEYWORD for p in signature.parameters.values()):
        for option in options:
            if option not in known:
                right = f"known: {', '.join(known)}" if known else "it has none"
                raise ConfigError(f"options.{option}: {name!r} has no such option{near(option, known)} ({right})")
    for option, parameter in known.items():
        if parameter.default is parameter.empty and option not in options:
            raise ConfigError(f"options.{option}: required by {name!r}, but not given")
    return cls(**options)


def resolve_budget(budget: int | float, total: int) -> int:
    """Return the number of examples; a fraction is read as its decimal digits say and rounded down.

    Raises:
        ConfigError: not a number, 0 or less, more than `total`, or a fraction above 1 or of less than one row.
    """
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise ConfigError(f"budget: found {budget!r}, expected a number of examples or a fraction in (0, 1]")
    if isinstance(budget, Integral):
        count = int(budget)
        if not 1 <= count <= total:
            raise ConfigError(f"budget: {count} examples of {total} rows; expected 1 to {total}")
        return count
    if not 0 < budget <= 1:
        raise ConfigError(
            f"budget: found the fraction {float(budget)!r}, expected one in (0, 1]; examples are given as an integer"
        )
    # In binary 0.29 is a little less than 29/100, and 0.29 of 100 rows would be 28.
    count = int(Fraction(str(float(budget))) * total)
    if count == 0:
        raise ConfigError(f"budget: {float(budget)!r} of {total} rows is less than one example")
    return count


def check_groups(source: AttributionSource, groups: Sequence[str] | None) -> tuple[str, ...]:
    """Return one task name per column. Raises ConfigError where they are not."""
    if groups is None:
        if isinstance(source, Attribution):
            return source.groups
        raise ConfigError("groups: required for an array, one task name per column")
    if isinstance(groups, str):
        raise ConfigError(f"groups: found the string {groups!r}, expected one task name per column")
    names = list(groups)
    if len(names) != source.shape[1]:
        raise ConfigError(f"groups: {len(names)} names for {source.shape[1]} columns; give the task of each column")
    for index, name in enumerate(names):
        if not isinstance(name, str) or not name:
            raise ConfigError(f"groups.{index}: found {name!r}, expected the name of a task")
    return tuple(str(name) for name in names)


def _is_source(value: Any) -> bool:
    return hasattr(value, "blocks") and hasattr(value, "gather")


def _opened(attribution: Any) -> AttributionSource:
    return Attribution(attribution) if isinstance(attribution, str | Path) else ArrayAttribution(attribution)


def _check(selection: Selection, problem: SelectionProblem, method: str) -> None:
    rows, budget = np.asarray(selection.rows), problem.budget
    right = len(rows) == len(selection.merit) == len(selection.column) == budget and len(np.unique(rows)) == budget
    if not right or not np.isin(rows, problem.attribution.rows).all():
        raise ConfigError(
            f"method: {method!r} did not return {budget} different rows of the matrix with a merit and a column each; "
            "this is an error of the method, not of the config"
        )
