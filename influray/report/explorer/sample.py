"""The rows that a page without a server carries: the first of every selection, within a bound of bytes.

Shape suffixes: B rows of the sample, C columns in use, G tasks with one.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from influray.evaluation.prefixes import task_means
from influray.report.explorer.data import short
from influray.report.explorer.rows import open_chosen
from influray.report.templating import inline_json
from influray.store.attribution import Attribution

SERVED = 12  # tasks whose influence a row of the sample names; with more, the highest and the lowest one


def sample_rows(
    run_dir: str | Path, selections: Sequence[str], attribution: Attribution | None, most_bytes: int
) -> dict[str, Any]:
    """Return {"selections": {name: {"total", "variants", "rows"}}, "records": {row: facts}}.

    Facts are "id", "source", "text", "cut" and "tasks".

    The selections give their rows in turn and in order of choice, until the whole has `most_bytes` as JSON, so each
    selection is there with its beginning. Texts are cut as on a page of rows. A row of a selection is
    [row, merit, task, target_id, chosen_in]. "tasks" is [[task, mean standardised influence], ...], highest first;
    empty without a matrix.
    """
    chosen = {name: open_chosen(run_dir, name) for name in selections}
    found: dict[str, Any] = {
        name: {"total": len(one), "variants": one.variants, "rows": []} for name, one in chosen.items()
    }
    records: dict[int, dict[str, Any]] = {}
    left = most_bytes - len(inline_json(found))
    tasks_bytes = _tasks_bytes(attribution)
    for place in range(max((len(one) for one in chosen.values()), default=0)):
        new: dict[int, dict[str, Any]] = {}
        lines = {}
        for name, one in chosen.items():
            if place < len(one):
                facts = one.facts(place)
                lines[name] = [facts["row"], facts["merit"], facts["task"], facts["target_id"], facts["chosen_in"]]
                if facts["row"] not in records:
                    new[facts["row"]] = {"id": facts["id"], "source": facts["source"], **one.text(place), "tasks": []}
        left -= len(inline_json([new, *lines.values()])) + tasks_bytes * len(new)
        if left < 0:
            break
        records |= new
        for name, line in lines.items():
            found[name]["rows"].append(line)
    if attribution is not None and attribution.stats.used_T.any() and records:
        for row, tasks in zip(records, served(attribution, np.array(list(records))), strict=True):
            records[row]["tasks"] = tasks
    return {"selections": found, "records": {str(row): record for row, record in records.items()}}


def served(attribution: Attribution, row_B: np.ndarray) -> list[list[tuple[str, float]]]:
    """Return of each row its tasks with their mean standardised influence, highest first, at most SERVED of them."""
    stats = attribution.stats
    column_C = np.flatnonzero(stats.used_T)
    tasks = list(dict.fromkeys(attribution.groups[j] for j in column_C.tolist()))
    task_C = np.array([tasks.index(attribution.groups[j]) for j in column_C.tolist()])
    z_BC = (attribution.gather(row_B)[:, column_C].astype(np.float64) - stats.mean_T[column_C]) / stats.std_T[column_C]
    mean_BG = task_means(z_BC, task_C, len(tasks))
    order_BG = np.argsort(-mean_BG, axis=1, kind="stable")
    if len(tasks) > SERVED:
        order_BG = np.concatenate([order_BG[:, : SERVED - 1], order_BG[:, -1:]], axis=1)
    return [
        [(tasks[g], short(float(mean_G[g]))) for g in order_G.tolist()]
        for mean_G, order_G in zip(mean_BG, order_BG, strict=True)
    ]


def _tasks_bytes(attribution: Attribution | None) -> int:
    """The bytes that the tasks of a row take at most: their names quoted, brackets, commas and a number each."""
    if attribution is None:
        return 0
    names = sorted((len(inline_json(task)) for task in set(attribution.groups)), reverse=True)
    return sum(names[:SERVED]) + 16 * min(SERVED, len(names))
