"""Committed selections as the report sees them: what was chosen, and how it serves the tasks.

Shape suffixes: n chosen rows, N rows of the catalogue.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from influray.data.catalogue import Catalogue
from influray.evaluation.balance import measure_balance, measure_roles
from influray.evaluation.copies import count_copies
from influray.evaluation.overlap import jaccard, rank_biased_overlap
from influray.protocols import ArtifactMismatch, DataError
from influray.report.data import Limited, Overlap, PoolFacts, Quantiles, SelectionFacts, TaskBalance
from influray.selectors.auto_budget import describe
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.store.column_view import sought
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_summary, read_table

MADE_BY = ("method", "options", "seed", "constraints")  # and by its budget
STYLES = ("c0", "c1", "c2", "c3", "c4", "c5")  # colour classes of style.css


class Pool:
    """The pool's catalogue with the columns that the report reads, each [N] in row order."""

    def __init__(self, catalogue: Catalogue) -> None:
        facts = catalogue.facts("id", "source", "tokens")
        self.catalogue = catalogue
        self.id_N = np.asarray(facts["id"], dtype=object)
        self.source_N = np.asarray(facts["source"], dtype=object)
        self.token_N = np.asarray(facts["tokens"], dtype=np.int64)

    def facts(self) -> PoolFacts:
        catalogue, lengths = self.catalogue, quantiles(self.token_N)
        by = tuple(catalogue.manifest.get("cascade", {}).get("by", ()))
        sums = len(self.id_N), int(self.token_N.sum()), _counted(self.source_N)
        return PoolFacts(*sums, lengths, catalogue.never_scored, by)


def selection_facts(
    run: RunDirectory, name: str, place: int, pool: Pool, attribution: Attribution | None
) -> tuple[SelectionFacts, np.ndarray]:
    """Return the facts of a committed selection and its rows, int64 [n] in order of choice.

    `place` is its number on the page, which decides its colour.

    Raises:
        ArtifactMismatch: its files cannot be read, or its rows are not those of the catalogue or of the matrix.
    """
    folder = run.selection(name)
    record, table = read_summary(folder), read_table(folder, ["rank", "row", "id", "task"])
    row_n = table["row"].to_numpy().astype(np.int64)
    if not len(row_n) or row_n.max() >= len(pool.id_N) or pool.id_N[row_n].tolist() != table["id"].to_pylist():
        raise ArtifactMismatch(f"{folder}: its rows are not those of {run.data('pool')}; run `influray select` again")
    roles = {task: one["role"] for task, one in record.get("roles", {}).items()}  # those that it was made with
    facts = SelectionFacts(
        name=name,
        method=str(record["method"]),
        options=dict(record.get("options") or {}),
        seed=int(record.get("seed", 0)),
        style=STYLES[place % len(STYLES)],
        ids=tuple(table["id"].to_pylist()),
        tokens=int(pool.token_N[row_n].sum()),
        sources=_counted(pool.source_N[row_n]),
        winners=dict(Counter(task for task in table["task"].to_pylist() if task).most_common()),
        lengths=quantiles(pool.token_N[row_n]),
        duplicates=count_copies(pool.catalogue, row_n),
        balance=None if attribution is None else _balance(attribution, roles, row_n, name),
        limited={} if attribution is None else _limited(attribution, roles, row_n),
        but_budget=json.dumps([record.get(key) for key in MADE_BY], sort_keys=True),
        auto=describe(record["budget"]["auto"]) if "auto" in record.get("budget", {}) else "",
    )
    return facts, row_n


def committed(run: RunDirectory, configured: Sequence[str]) -> list[str]:
    """Return the selections of the config that are committed, in the config's order."""
    return [name for name in configured if read_manifest(run.selection(name)) is not None]


def quantiles(values: np.ndarray) -> Quantiles:
    """Return five quantiles that are values of the data: lengths are whole tokens."""
    found = np.quantile(values, (0.1, 0.25, 0.5, 0.75, 0.9), method="inverted_cdf")
    return Quantiles(*(float(value) for value in found))


def largest_sources(sides: Iterable[tuple[Mapping[str, int], int]], most: int) -> tuple[list[str], list[str]]:
    """Return the sources by their largest share on any side, and those of them that are one too many to be told apart.

    A side is its rows by source and their number, the pool's or a selection's. With more than `most` sources the last
    of them are left to be summed up in one line.
    """
    share: dict[str, float] = {}
    for rows, total in sides:
        for name, count in rows.items():
            share[name] = max(share.get(name, 0.0), count / total)
    ordered = sorted(share, key=lambda name: (-share[name], name))
    return (ordered, []) if len(ordered) <= most else (ordered[: most - 1], ordered[most - 1 :])


def _counted(values: np.ndarray) -> dict[str, int]:
    return dict(Counter(values.tolist()).most_common())


def _limited(attribution: Attribution, roles: Mapping[str, str], row_n: np.ndarray) -> dict[str, Limited]:
    found = measure_roles(attribution, attribution.groups, roles, row_n)
    return {task: Limited(roles[task], mean) for task, mean in found.items()}


def _balance(attribution: Attribution, roles: Mapping[str, str], row_n: np.ndarray, name: str) -> TaskBalance | None:
    view = sought(attribution, attribution.groups, roles)
    if not view.stats.used_T.any():
        return None
    try:
        found = measure_balance(view, view.stats, view.groups, row_n)
    except DataError as error:
        raise ArtifactMismatch(f"selection {name}: {error}; run `influray select` again") from error
    known = {task: value for task, value in found.aid_by_task().items() if value is not None}
    return TaskBalance(
        {task: value.mean for task, value in known.items()},
        {task: value.std for task, value in known.items()},
        {task: found.thi_task[task] for task in known},
        {task: found.thi_instance[task] for task in known},
    )


def overlap(chosen: Sequence[SelectionFacts]) -> Overlap:
    """Return how alike selections are.

    Rank-biased overlap looks to a mean depth of a tenth of the smallest selection (at least 2): the order within
    the first rows chosen counts most, and rows past that selection's end count e^-10 of the whole.
    """
    depth = max(2.0, min((one.examples for one in chosen), default=0) / 10)
    ranked = [[rank_biased_overlap(a.ids, b.ids, 1 - 1 / depth) for b in chosen] for a in chosen]
    return Overlap([[jaccard(a.ids, b.ids) for b in chosen] for a in chosen], ranked, depth)
