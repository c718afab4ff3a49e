"""Selecting in Python: an attribution matrix and the task of each column in, rows in order of choice out."""

from __future__ import annotations

import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal

import numpy as np

from influray.config import parse_auto_budget, parse_constraints
from influray.config_base import as_written
from influray.config_messages import near
from influray.config_select import AutoBudget, BoundsConfig, ConstraintsConfig, TokenBudget
from influray.plugins import offered, permit
from influray.protocols import (
    AttributionSource,
    Bounds,
    ConfigError,
    Limits,
    Selection,
    SelectionProblem,
    Selector,
)
from influray.registry import METHODS, SELECTORS, make, outside_code, resolve_method
from influray.selectors.admission import Admission, DeadEnd
from influray.selectors.auto_budget import AutoChoice, otm_budget
from influray.selectors.kept import require_kept
from influray.selectors.roles import check_roles, with_roles
from influray.selectors.row_facts import ArrayFeatures, given_facts
from influray.store.artifact import read_manifest
from influray.store.attribution import ArrayAttribution, Attribution
from influray.store.column_view import sought

logger = logging.getLogger(__name__)

MOST_RESTARTS = 100


def select(
    attribution: Any,
    groups: Sequence[str] | None,
    budget: int | float | Mapping[str, Any] | Literal["auto"],
    *,
    method: str = "bids",
    seed: int = 0,
    rows: Any = None,
    features: Any = None,
    constraints: Mapping[str, Any] | None = None,
    roles: Mapping[str, str] | None = None,
    **options: Any,
) -> Selection:
    """Return a selection of `budget` rows, in order of choice.

    Args:
        attribution: array-like [N, T], larger helps more; or the path of RUN/attribution, which is streamed.
        groups: the task of each of the T columns; None takes those that a path has stored.
        budget: an integer is examples; a float in (0, 1] the fraction of N, rounded down, for a run with a cascade of
            its whole pool; {"tokens": n} as many rows as fit into n tokens; "auto", or {"auto": "otm"} with its keys
            `most` and `folds`, as many as the targets ask for (influray.selectors.auto_budget), which is logged.
        method: a selector's name or a published method's (bids, less, ...), or "package.module:Class".
        seed: for the methods that draw.
        rows: per-row facts [N] by name (source, tokens, id), for the methods and constraints that read them: a mapping
            of columns, a data frame or an Arrow table; of a path, those of the run's catalogue.
        features: feature rows [N, D] of any length, arrays or tensors, or a list of one such per checkpoint, for
            constraints["near_duplicates"] and the methods that compare rows; of a path, those of the run.
        constraints: as `constraints` of a config's selector: include, exclude (ids), sources, tasks (name -> {"min",
            "max"}), near_duplicates (a cosine).
        roles: task -> "seek" (what all others are), "protect" or "avoid": the rows chosen so far never harm a protected
            task and never help an avoided one, by their summed standardised influence (influray.selectors.roles).
        options: of the method; they take precedence over those that a published method's name stands for.

    `rows` of the result are positions in an array and catalogue rows for a path; `dropped_columns` the columns that
    could not be standardised, which are logged too.

    Raises:
        ConfigError: groups, budget, method or options that do not fit.
        DataError: scores that cannot be used.
    """
    limited = parse_constraints(constraints or {})
    check_method(method)
    if target := outside_code("selectors", method):
        permit([target])  # spelled out by the caller
    source = attribution if _is_source(attribution) else _opened(attribution)
    names = check_groups(source, groups)
    total = source.shape[0]
    facts = _run_facts(source) if rows is None else given_facts(rows, total)
    if isinstance(seed, bool) or not isinstance(seed, Integral) or seed < 0:
        raise ConfigError(f"seed: found {seed!r}, expected an integer of 0 or more")
    never_scored = _never_scored(source)
    settled, found = settle_budget(budget, source, names, int(seed), roles, never_scored)
    if found is not None:
        logger.info("the budget chose itself: %d rows by %s", found.rows, found.text)
    count, limits = resolve_limits(settled, limited, total, never_scored=never_scored)
    if features is None and isinstance(source, Attribution) and needs_features(method, options, limits):
        features = source.features()
    elif features is not None and (hasattr(features, "detach") or not hasattr(features, "gather")):  # tensors have both
        features = ArrayFeatures(features, total)
    problem = SelectionProblem(source, names, count, int(seed), facts, limits, features)
    return run_selector(problem, method, options, roles or {})


def run_selector(
    problem: SelectionProblem, method: str, options: Mapping[str, Any], roles: Mapping[str, str] | None = None
) -> Selection:
    """Return the selection of a method, with the method's name and all its given options on it.

    The method sees the columns of the tasks that are sought; `column` of the result counts all columns. `roles` are
    those of other tasks.

    Where a chosen row has barred a near-duplicate without which sources or tasks cannot be kept to, the selection
    begins anew without that row, up to MOST_RESTARTS times. Whether a selection exists at all is a hard problem
    (independent sets are a case of it), so an error says that none was found, not that there is none.

    Raises:
        ConfigError: an unknown method or option, or a method whose result is no selection of this problem; as
            `with_roles`.
    """
    check_method(method)
    name, preset = resolve_method(method)
    merged = {**preset, **options}
    selector, seen = make_selector(name, merged), with_roles(problem, roles or {}, merged)
    selection = _select(selector, seen)
    require_kept(selection, seen, method)
    if seen is not problem:
        column_C = sought(problem.attribution, problem.groups, roles or {}).column_C
        selection = replace(selection, column=np.where(selection.column < 0, -1, column_C[selection.column]))
    stats = problem.attribution.known_stats if isinstance(problem.attribution, Attribution | ArrayAttribution) else None
    dropped = {} if stats is None else stats.left_out()
    return replace(selection, method=method, options=merged, dropped_columns=dropped)


def _select(selector: Selector, problem: SelectionProblem) -> Selection:
    for _ in range(MOST_RESTARTS):
        try:
            return selector.select(problem)
        except DeadEnd as end:
            if end.position is None:
                break
            problem = replace(problem, passed_over=(*problem.passed_over, end.position))
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
    """Raise ConfigError where this names no method, selector or plug-in; it suggests the nearest name."""
    if not isinstance(method, str):
        raise ConfigError(f"method: found {method!r}, expected the name of a method, such as 'bids'")
    if method not in SELECTORS and method not in METHODS and outside_code("selectors", method) is None:
        known = sorted({*METHODS, *SELECTORS, *offered("selectors")})
        raise ConfigError(f"method: no method is called {method!r}{near(method, known)} (known: {', '.join(known)})")


def needs_features(method: str, options: Mapping[str, Any], limits: Limits) -> bool:
    """Return whether a selection by this method under these limits compares feature rows. Raises as `make_selector`."""
    name, preset = resolve_method(method)
    return limits.near_duplicates is not None or make_selector(name, {**preset, **options}).needs_features


def make_selector(name: str, options: Mapping[str, Any]) -> Selector:
    """Return a selector with its options. Raises ConfigError as `registry.make`."""
    return make("selectors", name, options)


def settle_budget(
    budget: int | float | Mapping[str, Any] | str,
    source: AttributionSource,
    groups: Sequence[str],
    seed: int,
    roles: Mapping[str, str] | None = None,
    never_scored: int = 0,
) -> tuple[Any, AutoChoice | None]:
    """Return a budget as `resolve_limits` takes it; of one that chooses itself the number of rows, and how.

    It looks at the columns of the tasks that are sought.

    Raises:
        ConfigError: not a budget that chooses itself, though it says so; as `check_roles`.
        ConfigError, DataError: as `otm_budget`.
    """
    if budget != "auto" and not (isinstance(budget, Mapping) and "auto" in budget):
        return budget, None
    auto = parse_auto_budget(budget if isinstance(budget, Mapping) else {"auto": "otm"})
    check_roles(roles or {}, groups)
    view = sought(source, groups, roles or {})
    found = otm_budget(view, view.groups, auto.folds, most_of(auto, source.shape[0], never_scored), seed)
    return found.rows, found


def most_of(auto: AutoBudget, total: int, never_scored: int = 0) -> int:
    """Return the most rows that a budget may choose of `total`; a fraction as in `resolve_budget`, one at least."""
    most = auto.most if isinstance(auto.most, int) else int(as_written(auto.most) * (total + never_scored))
    return min(total, max(1, most))


def resolve_limits(
    budget: int | float | Mapping[str, int],
    constraints: ConstraintsConfig,
    total: int,
    root: str | Path = ".",
    never_scored: int = 0,
) -> tuple[int, Limits]:
    """Return the number of examples and the limits, as `resolve_budget`. Files of ids are read under `root`.

    Raises:
        ConfigError: as `resolve_budget`; a fraction of a budget in tokens; a min above its max; a file of ids that
            cannot be read.
    """
    tokens = None
    if isinstance(budget, Mapping):
        tokens = budget.get("tokens")
        if set(budget) != {"tokens"} or isinstance(tokens, bool) or not isinstance(tokens, Integral) or tokens < 1:
            raise ConfigError(f"budget: found {dict(budget)!r}, expected {{tokens: n}} with an integer n >= 1")
    count = total if isinstance(budget, Mapping) else resolve_budget(budget, total, never_scored)
    bounds = {
        kind: {name: _bounds(f"constraints.{kind}.{name}", one, count, tokens is not None) for name, one in of.items()}
        for kind, of in (("sources", constraints.sources), ("tasks", constraints.tasks))
    }
    ids = {
        kind: read_ids(f"constraints.{kind}", value, Path(root))
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


def check_limits(
    facts: Mapping[str, Sequence[Any]],
    total: int,
    budget: int | float | TokenBudget | AutoBudget,
    constraints: ConstraintsConfig,
    root: str | Path = ".",
    never_scored: int = 0,
) -> None:
    """See whether `total` rows can keep to a budget and its limits, by their facts, before there is a matrix.

    What needs scores is left out: limits of tasks and near-duplicates; of a budget that chooses itself, all numbers.

    Raises:
        ConfigError: as `resolve_limits`; an id or source that no row has, or limits that cannot be kept.
    """
    if isinstance(budget, AutoBudget):  # a number of rows that is not known: only whether ids and sources are there
        constraints = constraints.model_copy(update={"sources": dict.fromkeys(constraints.sources, BoundsConfig())})
        budget = total
    asked = {"tokens": budget.tokens} if isinstance(budget, TokenBudget) else budget
    count, limits = resolve_limits(asked, constraints, total, root, never_scored)
    known = replace(limits, tasks={}, near_duplicates=None)
    if known != Limits():
        unscored = ArrayAttribution(np.broadcast_to(np.float32(0), (total, 1)))
        Admission(SelectionProblem(unscored, ("",), count, 0, facts, known))


def _bounds(key: str, given: BoundsConfig, budget: int, in_tokens: bool) -> Bounds:
    for name, value in (("min", given.min), ("max", given.max)):
        if in_tokens and isinstance(value, float):
            raise ConfigError(f"{key}.{name}: {value} is a fraction of the examples; a budget in tokens has no number")
    low = math.ceil(as_written(given.min) * budget) if isinstance(given.min, float) else given.min
    high = math.floor(as_written(given.max) * budget) if isinstance(given.max, float) else given.max
    if high is not None and high < low:
        raise ConfigError(f"{key}.max: {high} rows, less than its min of {low}")
    return low, high


def read_ids(key: str, given: tuple[str, ...] | str, root: Path) -> tuple[str, ...]:
    """Return ids as they are given, or those of a file under `root`. Raises ConfigError where it cannot be read."""
    if not isinstance(given, str):
        return given
    path = root / given
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{key}: the file of ids {path} cannot be read: {error}") from error
    return tuple(line.removesuffix("\r") for line in lines if line.strip())


def _never_scored(source: AttributionSource) -> int:
    """Return how many rows of a run's pool did not pass its cascade, 0 for what is no run's."""
    folder = source.folder.parent / "data" / "pool" if isinstance(source, Attribution) else None
    manifest = None if folder is None else read_manifest(folder)
    return 0 if manifest is None or "cascade" not in manifest else manifest["cascade"]["rows"] - manifest["rows"]


def _run_facts(source: AttributionSource) -> Mapping[str, Sequence[Any]]:
    if not isinstance(source, Attribution):
        return {}
    folder = source.folder.parent / "data" / "pool"
    if read_manifest(folder) is None:
        return {}
    # With it come tokenizers, which a matrix alone has no use for.
    from influray.data.pool_facts import PoolFacts

    return PoolFacts(folder, source.rows)


def resolve_budget(budget: int | float, total: int, never_scored: int = 0) -> int:
    """Return the number of examples, of `total`; a fraction is read as its decimal digits say and rounded down.

    A fraction is of the whole pool: `never_scored` are the rows of it that did not pass a cascade.

    Raises:
        ConfigError: not a number, 0 or less, more than `total`, or a fraction above 1 or of less than one row.
    """
    whole = total + never_scored
    if isinstance(budget, bool) or not isinstance(budget, Real):
        raise ConfigError(f"budget: found {budget!r}, expected a number of examples or a fraction in (0, 1]")
    if isinstance(budget, Integral):
        count = int(budget)
        if not 1 <= count <= total:
            passed = f" that passed the cascade, of {whole}" if never_scored else ""
            raise ConfigError(f"budget: {count} examples of {total} rows{passed}; expected 1 to {total}")
        return count
    if not 0 < budget <= 1:
        raise ConfigError(
            f"budget: found the fraction {float(budget)!r}, expected one in (0, 1]; examples are given as an integer"
        )
    count = int(as_written(budget) * whole)
    if count == 0:
        raise ConfigError(f"budget: {float(budget)!r} of {whole} rows is less than one example")
    if count > total:
        raise ConfigError(
            f"budget: {float(budget)!r} of {whole} rows is {count} examples, and {total} rows passed the cascade"
        )
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
