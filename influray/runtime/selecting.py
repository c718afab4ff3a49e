"""One selector of a config over a run directory, as the selection driver runs it: read, select, measure, commit.

Shape suffixes: N rows of the attribution matrix, n chosen rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from influray.config import parse_constraints
from influray.data.catalogue import Catalogue
from influray.data.pool_facts import PoolFacts
from influray.evaluation.balance import Balance, measure_balance, measure_roles
from influray.evaluation.copies import count_copies
from influray.protocols import ArtifactMismatch, Selection, SelectionProblem
from influray.selectors.api import needs_features, resolve_limits, run_selector, settle_budget
from influray.store.attribution import Attribution
from influray.store.column_view import sought
from influray.store.ranges import Mapper
from influray.store.run_directory import RunDirectory
from influray.store.selection import commit_selection

RECORDS_AT_ONCE = 4096
QUANTILES = {"min": 0.0, "p10": 0.1, "p25": 0.25, "median": 0.5, "p75": 0.75, "p90": 0.9, "max": 1.0}


def select_and_write(
    run_dir: str | Path,
    selector: Mapping[str, Any],
    fingerprint: str,
    id_root: str | Path = ".",
    roles: Mapping[str, str] | None = None,
    mapper: Mapper | None = None,
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> dict[str, Any]:
    """Run one selector of the config over RUN/attribution, commit RUN/selection/NAME, and return its summary.

    `selector` has the keys of a config's selector: name, method, budget (a fraction is of the rows of the matrix and
    of those that did not pass a cascade; of one that chooses itself the summary says how), seed, options, constraints,
    whose files of ids lie under `id_root`; `roles` are those of the tasks that are not sought. An older selection of
    that name stays until the new one is complete. AID and THI are those of the z-scored matrix of the tasks that are
    sought, whatever the method. `mapper` runs the passes over the matrix; `on_progress(chosen, budget)` is called by a
    method that chooses one by one.

    Raises:
        ConfigError, DataError: as `influray.select`.
        ArtifactMismatch: attribution or catalogue are not there, or not of one run.
    """
    run = RunDirectory(run_dir)
    attribution = Attribution(run.attribution, mapper)
    catalogue = Catalogue(run.data("pool"))
    rows_N = attribution.rows
    if len(rows_N) and rows_N[-1] >= len(catalogue):
        raise ArtifactMismatch(
            f"{attribution.folder}: holds row {rows_N[-1]}, but {run.data('pool')} has {len(catalogue)} rows; "
            "run `influray score` again"
        )
    facts = PoolFacts(catalogue, rows_N)
    constraints = parse_constraints(selector["constraints"])
    never = catalogue.never_scored
    settled, found = settle_budget(selector["budget"], attribution, attribution.groups, selector["seed"], roles, never)
    budget, limits = resolve_limits(settled, constraints, len(rows_N), id_root, never)
    compared = needs_features(selector["method"], selector["options"], limits)
    features = attribution.features() if compared else None
    folder = run.selection(selector["name"])
    problem = SelectionProblem(
        attribution, attribution.groups, budget, selector["seed"], facts, limits, features, on_progress
    )
    selection = run_selector(problem, selector["method"], selector["options"], roles)
    chosen = {name: catalogue.gather(name, selection.rows) for name in (*facts, "weight")}
    summary = _summary(selector, attribution, selection, chosen, roles or {})
    if found is not None:
        summary["budget"]["auto"] = found.as_plain()
    summary["copies"] = count_copies(catalogue, selection.rows)  # chosen rows with the turns of one before them
    table = _table(attribution, selection, chosen)
    commit_selection(folder, fingerprint, _records(catalogue, selection.rows), table, summary)
    return summary


def _table(attribution: Attribution, selection: Selection, chosen: Mapping[str, list[Any]]) -> pa.Table:
    def of_column(values: Sequence[str]) -> pa.Array:
        return pa.array([values[j] if j >= 0 else None for j in selection.column], pa.string())

    return pa.table(
        {
            "rank": pa.array(np.arange(1, len(selection.rows) + 1)),
            "row": pa.array(selection.rows),
            "id": pa.array(chosen["id"], pa.string()),
            "source": pa.array(chosen["source"], pa.string()),
            "merit": pa.array(selection.merit),
            "target_id": of_column(attribution.target_ids),
            "task": of_column(attribution.groups),
            "column": pa.array(selection.column),
            "weight": pa.array(chosen["weight"], pa.float32()),
        }
    )


def _summary(
    selector: Mapping[str, Any],
    attribution: Attribution,
    selection: Selection,
    chosen: Mapping[str, list[Any]],
    roles: Mapping[str, str],
) -> dict[str, Any]:
    view = sought(attribution, attribution.groups, roles)
    balance = measure_balance(view, view.stats, view.groups, selection.rows)
    token_n = np.array(chosen["tokens"], np.int64)
    quantile = np.quantile(token_n, list(QUANTILES.values()), method="inverted_cdf")
    winners = [attribution.groups[j] for j in selection.column if j >= 0]
    return {
        "name": selector["name"],
        "method": selector["method"],
        "options": dict(selection.options),
        "seed": selector["seed"],
        "budget": {"asked": selector["budget"], "examples": len(selection.rows)},
        "constraints": {name: value for name, value in selector["constraints"].items() if value},
        "matrix": {"rows": attribution.shape[0], "columns": attribution.shape[1]},
        "counts": {
            "source": dict(Counter(chosen["source"])),
            "task": dict(Counter(winners)),  # of the columns that won; empty where a method names none
            "tokens": int(token_n.sum()),
            "token_quantiles": {name: int(value) for name, value in zip(QUANTILES, quantile, strict=True)},
        },
        "aid": _aid([attribution.target_ids[j] for j in view.column_C], balance),
        "roles": {
            task: {"role": roles[task], "mean": mean}
            for task, mean in measure_roles(attribution, attribution.groups, roles, selection.rows).items()
        },
        "thi": {"task": balance.thi_task, "instance": balance.thi_instance},
        "left_out": [
            {"column": j, "id": attribution.target_ids[j], "task": attribution.groups[j], "reason": reason}
            for j, reason in attribution.stats.left_out().items()
        ],
    }


def _aid(target_ids: Sequence[str], balance: Balance) -> dict[str, Any]:
    by_task = balance.aid_by_task()
    means = np.array([aid.mean for aid in by_task.values() if aid is not None])
    columns = zip(target_ids, balance.groups, balance.aid_T.tolist(), strict=True)
    return {
        "tasks": {
            task: None if aid is None else {"mean": aid.mean, "min": aid.min, "max": aid.max, "std": aid.std}
            for task, aid in by_task.items()
        },
        "columns": [{"id": i, "task": task, "aid": None if np.isnan(aid) else aid} for i, task, aid in columns],
        "macro": float(means.mean()),
        "worst": float(means.min()),
        "spread": float(means.std()),  # over the tasks, ddof 0
    }


def _records(catalogue: Catalogue, rows: np.ndarray) -> Iterator[bytes]:
    for start in range(0, len(rows), RECORDS_AT_ONCE):
        yield from catalogue.records(rows[start : start + RECORDS_AT_ONCE].tolist())
