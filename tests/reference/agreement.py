"""What a pilot says of two runs, from their matrices and selections, row by row."""

from __future__ import annotations

import numpy as np

from influray.data.catalogue import Catalogue


def chosen_ids(run, name: str) -> list[str]:
    ids = Catalogue(run.directory.data("pool")).ids
    return [ids[row] for row in run.selection(name).rows.tolist()]


def _standardised(run) -> tuple[dict[str, dict[str, float]], list[str]]:
    """Task -> id -> mean over its columns of the standardised influence."""
    matrix = np.asarray(run.attribution(), np.float64)
    ids = Catalogue(run.directory.data("pool")).ids
    groups = run.attribution().groups
    rows = run.attribution().rows.tolist()
    found: dict[str, dict[str, float]] = {}
    for task in dict.fromkeys(groups):
        columns = [j for j, group in enumerate(groups) if group == task]
        z = [(matrix[:, j] - matrix[:, j].mean()) / matrix[:, j].std() for j in columns]
        found[task] = {ids[row]: float(np.mean([one[i] for one in z])) for i, row in enumerate(rows)}
    return found, [ids[row] for row in rows]


def merit(full, ids: list[str]) -> dict[str, float]:
    by_task, _ = _standardised(full)
    return {task: float(np.mean([of[one] for one in ids])) for task, of in by_task.items()}


def correlation(full, other) -> float:
    (one, ids), (two, _) = _standardised(full), _standardised(other)
    pairs = [[ranks([of[task][one] for one in ids]) for of in (one, two)] for task in one]
    return float(np.mean([np.corrcoef(*pair)[0, 1] for pair in pairs]))


def ranks(values: list[float]) -> list[float]:
    return [sum(other < value for other in values) + sum(other == value for other in values) / 2 for value in values]
