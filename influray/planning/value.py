"""value: what rows that a run has never seen would add to what one of its selections has chosen already.

Shape suffixes: N rows of the pool, n new rows, C columns in use of the tasks sought, G tasks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influray import formatting
from influray.config_base import as_written
from influray.config_messages import near
from influray.data.catalogue import Catalogue
from influray.evaluation.audit import unhelped_targets
from influray.evaluation.known_answer import task_scores
from influray.planning.adds import Best, Columns, Seen, best_subset
from influray.planning.offer import Offer
from influray.protocols import ConfigError, DataError
from influray.steps.context import StepContext
from influray.store.artifact import fingerprint, write_bytes, write_sealed
from influray.store.attribution import Attribution
from influray.store.selection import read_selection
from influray.validation import stability

NEAR = 0.98  # as the audit tells near-duplicates
SHOWN = 50  # rows of the best that are described
KEPT = 1000  # copies that are listed
TEXT = 4000  # characters of a text
LEAST = "least helped of its task"


@dataclass(frozen=True)
class Asked:
    """What is asked: files of rows, the selection they are to add to, and how many are priced and chosen."""

    data: tuple[str, ...]
    selection: str = ""  # "" = the first of the config
    rows: int = 1000
    # Most of the best rows: a number, or a fraction of the file's rows; None = as many as the selection has
    budget: int | float | None = None
    near: float = NEAR


def value(context: StepContext, asked: Asked) -> dict[str, Any]:
    """Price the rows, write RUN/validate/value/PLACE/value.json and return it: plain JSON.

    `gain` of a task is what `counted` random rows of the file add to the best chosen row of each of its targets
    (`evaluation.worth`), `gain_of_pool` the same of as many pool rows that are not chosen, `gain_of_best` that of the
    best subset: the rows that facility location goes on with from what is chosen, as long as they add anything. All are
    in standard deviations over the run's pool, means over a task's targets, then over tasks. `mean` is the mean
    influence of the file's rows, 0 for the pool's, and `mean_of_chosen` that of the chosen.

    Rows that hold a target or a test record are counted in `contaminated`, and left out of all that.

    Raises:
        ConfigError: no such selection, or numbers that make no sense.
        DataError: files that are not there or have no usable row.
        ArtifactMismatch: the run is not finished up to the selection, or is of another installation.
    """
    name = _checked(context, asked)
    chosen = read_selection(context.directory.selection(name)).rows
    offer = Offer(context, asked.data)
    own, matrix = Attribution(context.directory.attribution), offer.matrix
    with context.progress.step("value"):
        columns = Columns.of(own, chosen, context.config.data.roles)
        clean_n = ~np.isin(matrix.rows, offer.contaminated)
        free_N = ~np.isin(own.rows, chosen)
        if not clean_n.any():
            raise DataError("--data: every usable row holds a target or a test record of the run; there is no other")
        counted = min(asked.rows, int(clean_n.sum()), int(free_N.sum()) or asked.rows)
        seen = Seen.of(columns, own, matrix, free_N, clean_n, counted)
        most = _most(asked, len(matrix.rows), len(chosen))
        best = best_subset(columns, matrix, clean_n, most)
        tokens = offer.catalogue.facts("tokens")["tokens"].astype(np.int64)[matrix.rows]
        tasks = _tasks(context, own, matrix, chosen, clean_n)
        parts = {"gain": seen.gain_C, "gain_of_pool": seen.pool_gain_C, "gain_of_best": best.gain_C}
        for key, value_C in parts.items():
            found = {} if value_C is None else columns.by_task(value_C)
            for one in tasks:
                one[key] = found.get(one["task"])
        sought = [one for one in tasks if one["role"] == "seek" and one["gain"] is not None]
        result = {
            "files": [file["name"] for file in offer.catalogue.manifest["files"]],
            "place": offer.place,
            "selection": name,
            "chosen": len(chosen),
            "pool": own.shape[0],
            "rows": len(matrix.rows),
            "unusable": sum(one["read"] - one["left_out"] for one in offer.catalogue.manifest["files"])
            - len(matrix.rows),
            "tokens": int(tokens.sum()),
            "contaminated": [offer.catalogue.cell(row, "id") for row in offer.contaminated.tolist()],
            "counted": counted,
            "tasks": tasks,
            "mean": {
                key: float(np.mean([one[key] for one in sought])) if sought[0][key] is not None else None
                for key in ("mean", "mean_of_chosen", *parts)
            },
            "copies": _copies(context, offer, asked.near),
            "best": _told(columns, offer, best, most),
            "wanted": _wanted(context, columns, offer, seen),
        }
    write_sealed(context.directory.path / offer.place / "value.json", {**result, "fingerprint": fingerprint(result)})
    return result


def write_best(context: StepContext, found: Mapping[str, Any], to: Path) -> None:
    """Write the records of the best subset as they were read, in order of choice."""
    catalogue = Catalogue(context.directory.path / found["place"] / "data" / "pool")
    write_bytes(to, b"".join(record + b"\n" for record in catalogue.records(found["best"]["rows"])))


def _checked(context: StepContext, asked: Asked) -> str:
    """Return the name of the selection. Raises ConfigError where what is asked makes no sense."""
    known = [one.name for one in context.config.selectors]
    name = asked.selection or known[0]
    if name not in known:
        raise ConfigError(f"--selection: {name!r} is none of the run{near(name, known)} (known: {', '.join(known)})")
    if not asked.data:
        raise ConfigError("--data: no file is named; name the rows that are to be priced")
    if asked.rows < 1:
        raise ConfigError(f"--rows: found {asked.rows}, expected 1 or more")
    if asked.budget is not None and not 0 < asked.budget <= (1 if isinstance(asked.budget, float) else np.inf):
        raise ConfigError(f"--budget: found {asked.budget}, expected a number of rows or a fraction in (0, 1]")
    if not 0 < asked.near <= 1:
        raise ConfigError(f"--near: found {asked.near}, expected a cosine in (0, 1]")
    return name


def _most(asked: Asked, rows: int, chosen: int) -> int:
    """Return how many rows the best subset has at most."""
    if asked.budget is None:
        return chosen
    return asked.budget if isinstance(asked.budget, int) else max(1, int(as_written(asked.budget) * rows))


def _told(columns: Columns, offer: Offer, best: Best, most: int) -> dict[str, Any]:
    """Return the best subset as plain JSON."""
    first = zip(best.rows[:SHOWN].tolist(), best.gains, best.serves, strict=False)
    return {
        "most": most,
        "rows": best.rows.tolist(),
        "ids": offer.catalogue.gather("id", best.rows),
        "gains": best.gains,
        "tokens": sum(offer.catalogue.gather("tokens", best.rows)),
        "described": [
            {
                **_described(offer.catalogue, row),
                "gain": gain,
                "target": offer.matrix.target_ids[columns.column_C[c]],
                "task": columns.groups[c],
            }
            for row, gain, c in first
        ],
    }


def _tasks(
    context: StepContext, own: Attribution, matrix: Attribution, chosen: np.ndarray, clean_n: np.ndarray
) -> list[dict[str, Any]]:
    """Return of every task its role, its targets, and the mean influence of the new rows and of the chosen."""
    names, _, score_nG = task_scores(matrix, matrix.groups, matrix.stats)
    of_new_G, of_chosen_G = score_nG[clean_n].mean(axis=0), stability.task_means(own, chosen, names).mean(axis=0)
    return [
        {
            "task": task,
            "role": context.config.data.roles.get(task, "seek"),
            "targets": own.groups.count(task),
            "mean": _number(new),
            "mean_of_chosen": _number(of_chosen),
        }
        for task, new, of_chosen in zip(names, of_new_G, of_chosen_G, strict=True)
    ]


def _number(value: Any) -> float | None:
    return float(value) if np.isfinite(value) else None


def _copies(context: StepContext, offer: Offer, near_from: float) -> dict[str, Any]:
    """Return how many of the new rows are copies, of what, and which."""
    found, note = offer.copies(near_from)
    catalogues = {"pool": context.catalogue("pool"), "new": offer.catalogue}
    kinds = [(of, kind) for of in catalogues for kind in ("same text", "near")]
    return {
        "near": near_from,
        "note": note,
        "rows": len(found),
        "kinds": [
            {"of": of, "kind": kind, "rows": sum((c.of, c.kind) == (of, kind) for c in found)} for of, kind in kinds
        ],
        "listed": [
            {
                "id": offer.catalogue.cell(one.row, "id"),
                "kind": one.kind,
                "of": one.of,
                "other": catalogues[one.of].cell(one.other, "id"),
            }
            for one in found[:KEPT]
        ],
    }


def _wanted(context: StepContext, columns: Columns, offer: Offer, seen: Seen) -> dict[str, Any]:
    """Return the shopping list: the targets that no row helps, of the pool or new, and of each task the least helped.

    `met` are those that no pool row helped, and a new one does (`evaluation.audit.unhelped_targets`).
    """
    matrix, targets = offer.matrix, context.catalogue("target")
    catalogues = {"pool": context.catalogue("pool"), "new": offer.catalogue}
    ids = [matrix.target_ids[j] for j in columns.column_C.tolist()]
    place = {(task, one): c for c, (task, one) in enumerate(zip(columns.groups, ids, strict=True))}
    top_C = np.maximum(seen.top_pool_C, seen.top_new_C)
    before, after = (
        {(one.task, one.id): one for one in unhelped_targets(ids, columns.groups, top, columns.mean_C, columns.std_C)}
        for top in (seen.top_pool_C, top_C)
    )
    z_C, z_pool_C, z_new_C = (
        (top - columns.mean_C) / columns.std_C for top in (top_C, seen.top_pool_C, seen.top_new_C)
    )
    reasons = {place[key]: one.reason for key, one in after.items()}
    for task in columns.tasks:
        of_task = [c for c, group in enumerate(columns.groups) if group == task]
        reasons.setdefault(min(of_task, key=lambda c: z_C[c]), LEAST)
    return {
        "met": [ids[place[key]] for key in before if key not in after],
        "targets": [
            {
                "id": ids[c],
                "task": columns.groups[c],
                "reason": reason,
                "z_of_pool": float(z_pool_C[c]),
                "z_of_new": float(z_new_C[c]),
                "text": _text(targets, int(matrix.target_rows[columns.column_C[c]])),
                "nearest": [
                    {"of": of, **_described(catalogues[of], row), "influence": influence}
                    for of, row, influence in seen.nearest[c]
                ],
            }
            for c, reason in reasons.items()
        ],
    }


def _described(catalogue: Catalogue, row: int) -> dict[str, Any]:
    return {
        "row": row,
        "id": catalogue.cell(row, "id"),
        "source": catalogue.cell(row, "source"),
        "text": _text(catalogue, row),
    }


def _text(catalogue: Catalogue, row: int) -> str:
    """Return the text of a row, "" where a column is no single target's."""
    return formatting.visible(catalogue.texts(row, row + 1)[0].text[:TEXT]) if row >= 0 else ""
