"""Selecting in Python: an attribution matrix and the task of each column in, rows in order of choice out."""

from __future__ import annotations

import inspect
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from fractions import Fraction
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from influray.config import BoundsConfig, ConstraintsConfig, parse_constraints
from influray.protocols import (
    AttributionSource,
    Bounds,
    ConfigError,
    Limits,
    NoJournal,
    Selection,
    SelectionProblem,
    Selector,
)
from influray.registry import METHODS, SELECTORS, resolve, resolve_method
from influray.selectors.admission import DeadEnd
from influray.selectors.options import near
from influray.store.artifact import read_manifest
from influray.store.attribution import ArrayAttribution, Attribution
from influray.store.feature_rows import ArrayFeatures, run_features

if TYPE_CHECKING:
    from influray.data.catalogue import Catalogue

MOST_RESTARTS = 100
FACTS = ("id", "source", "tokens")  # of the catalogue, for methods, constraints and reports


def select(
    attribution: Any,
    groups: Sequence[str] | None,
    budget: int | float | Mapping[str, int],
    *,
    method: str = "bids",
    seed: int = 0,
    rows: Mapping[str, Sequence[Any]] | None = None,
    features: Any = None,
    constraints: Mapping[str, Any] | None = None,
    **options: Any,
) -> Selection:
    """Return a selection of `budget` rows, in order of choice.

    Args:
        attribution: array-like [N, T], larger helps more; or the path of RUN/attribution, which is streamed.
        groups: the task of each of the T columns; None takes those that a path has stored.
        budget: an integer is examples; a float in (0, 1] the fraction of N, rounded down; {"tokens": n} as many rows
            as fit into n tokens.
        method: a selector's name or a published method's (bids, less, ...), or "package.module:Class".
        seed: for the methods that draw.
        rows: per-row facts [N] by name (source, tokens, id), for the methods and constraints that read them; of a
            path, those of the run's catalogue.
        features: feature rows [N, D] of any length, or a list of one such array per checkpoint, for
            constraints["near_duplicates"]; of a path, those of the run.
        constraints: as `constraints` of a config's selector: include, exclude (ids), sources, tasks (name -> {"min",
            "max"}), near_duplicates (a cosine).
        options: of the method; they take precedence over those that a published method's name stands for.

    `rows` of the result are positions in an array and catalogue rows for a path.

    Raises:
        ConfigError: groups, budget, method or options that do not fit.
        DataError: scores that cannot be used.
    """
    limited = parse_constraints(constraints or {})
    source = attribution if _is_source(attribution) else _opened(attribution)
    names = check_groups(source, groups)
    total = source.shape[0]
    facts = _facts(source, rows)
    for name, values in (rows or {}).items():  # those of a catalogue are one a row, and not made before they are read
        if len(values) != total:
            raise ConfigError(f"rows.{name}: {len(values)} values for {total} rows of the attribution matrix")
    if isinstance(seed, bool) or not isinstance(seed, Integral):
        raise ConfigError(f"seed: found {seed!r}, expected an integer")
    count, limits = resolve_limits(budget, limited, total)
    if features is None and limits.near_duplicates is not None and isinstance(source, Attribution):
        features = run_features(source)
    elif features is not None and not hasattr(features, "gather"):
        features = ArrayFeatures(features, total)
    problem = SelectionProblem(source, names, count, int(seed), facts, limits, features)
    return run_selector(problem, method, options)


def run_selector(problem: SelectionProblem, method: str, options: Mapping[str, Any]) -> Selection:
    """Return the selection of a method, with the method's name and all its given options on it.

    Where a chosen row has barred a near-duplicate without which sources or tasks cannot be kept to, the selection
    begins anew without that row, up to MOST_RESTARTS times. Whether a selection exists at all is a hard problem
    (independent sets are a case of it), so an error says that none was found, not that there is none.

    Raises:
        ConfigError: an unknown method or option, or a plug-in whose result is no selection of this problem.
    """
    check_method(method)
    name, preset = resolve_method(method)
    merged = {**preset, **options}
    selection = _select(make_selector(name, merged), problem)
    _check(selection, problem, method)
    return replace(selection, method=method, options=merged)


def _select(selector: Selector, problem: SelectionProblem) -> Selection:
    for _ in range(MOST_RESTARTS):
        try:
            return selector.select(problem)
        except DeadEnd as end:
            if end.position is None:
                break
            # What a journal keeps is of the selection with the row; the new one differs from the start.
            problem = replace(problem, passed_over=(*problem.passed_over, end.position), journal=NoJournal())
        except ConfigError:
            if not problem.passed_over:
                raise
            break
    raise ConfigError(
        "constraints: no selection was found that keeps to near_duplicates and to sources and tasks: a row that is "
        f"chosen rules out others that a min needs ({len(problem.passed_over)} such rows were passed over in turn); "
        "loosen one of the limits"
    )


def check_method(method: str) -> None:
    """Raise ConfigError where this is neither a method's or a selector's name nor a plug-in, with the nearest name."""
    if ":" not in method and method not in SELECTORS and method not in METHODS:
        known = {**METHODS, **SELECTORS}
        raise ConfigError(
            f"method: no method is called {method!r}{near(method, known)} (known: {', '.join(sorted(known))})"
        )


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


def resolve_limits(
    budget: int | float | Mapping[str, int], constraints: ConstraintsConfig, total: int, root: str | Path = "."
) -> tuple[int, Limits]:
    """Return the number of examples and the limits. Files of ids are read under `root`.

    Raises:
        ConfigError: as `resolve_budget`; a fraction of a budget in tokens; a min above its max; a file of ids that
            cannot be read.
    """
    tokens = None
    if isinstance(budget, Mapping):
        tokens = budget.get("tokens")
        if set(budget) != {"tokens"} or isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 1:
            raise ConfigError(f"budget: found {dict(budget)!r}, expected {{tokens: n}} with an integer n >= 1")
    count = total if isinstance(budget, Mapping) else resolve_budget(budget, total)
    bounds = {
        kind: {name: _bounds(f"constraints.{kind}.{name}", one, count, tokens is not None) for name, one in of.items()}
        for kind, of in (("sources", constraints.sources), ("tasks", constraints.tasks))
    }
    ids = {
        kind: _ids(f"constraints.{kind}", value, Path(root))
        for kind, value in (("include", constraints.include), ("exclude", constraints.exclude))
    }
    return count, Limits(
        None if tokens is None else int(tokens),
        ids["include"],
        ids["exclude"],
        bounds["sources"],
        bounds["tasks"],
        constraints.near_duplicates,
    )


def _bounds(key: str, given: BoundsConfig, budget: int, in_tokens: bool) -> Bounds:
    for name, value in (("min", given.min), ("max", given.max)):
        if in_tokens and isinstance(value, float):
            raise ConfigError(f"{key}.{name}: {value} is a fraction of the examples; a budget in tokens has no number")
    low = math.ceil(Fraction(str(given.min)) * budget) if isinstance(given.min, float) else given.min
    high = math.floor(Fraction(str(given.max)) * budget) if isinstance(given.max, float) else given.max
    if high is not None and high < low:
        raise ConfigError(f"{key}.max: {high} rows, less than its min of {low}")
    return low, high


def _ids(key: str, given: tuple[str, ...] | str, root: Path) -> tuple[str, ...]:
    if not isinstance(given, str):
        return given
    path = root / given
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: the file of ids {path} cannot be read: {error}") from error
    return tuple(line.removesuffix("\r") for line in lines if line.strip())


def _facts(source: AttributionSource, rows: Mapping[str, Sequence[Any]] | None) -> Mapping[str, Sequence[Any]]:
    if rows is not None or not isinstance(source, Attribution):
        return dict(rows or {})
    folder = source.folder.parent / "data" / "pool"
    if read_manifest(folder) is None:
        return {}
    from influray.data.catalogue import Catalogue  # with it come tokenizers, which a matrix alone has no use for

    return pool_facts(Catalogue(folder), source.rows)


def pool_facts(catalogue: Catalogue, row_N: np.ndarray) -> Mapping[str, Sequence[Any]]:
    """Return FACTS of these catalogue rows, in the order given; a column is made when it is first asked for."""
    return PoolFacts(catalogue, row_N)


class PoolFacts(Mapping[str, Sequence[Any]]):
    """Columns of a catalogue by name. Most selectors read none, and the ids of a million rows take 100 MB."""

    def __init__(self, catalogue: Catalogue, row_N: np.ndarray) -> None:
        self._catalogue, self._row_N = catalogue, row_N
        self._made: dict[str, Sequence[Any]] = {}

    def __getitem__(self, name: str) -> Sequence[Any]:
        if name not in FACTS:
            raise KeyError(name)
        if name not in self._made:
            column_N = self._catalogue.facts(name)[name]
            self._made[name] = np.asarray(column_N, dtype=object)[self._row_N].tolist()
        return self._made[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FACTS)

    def __len__(self) -> int:
        return len(FACTS)


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
    rows = np.asarray(selection.rows)
    wanted = len(rows) if problem.limits.tokens is not None else problem.budget
    right = len(rows) == len(selection.merit) == len(selection.column) == wanted and len(np.unique(rows)) == wanted
    if not right or not np.isin(rows, problem.attribution.rows).all():
        raise ConfigError(
            f"method: {method!r} did not return {wanted} different rows of the matrix with a merit and a column each; "
            "this is an error of the method, not of the config"
        )
