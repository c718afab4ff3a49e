"""The audit of a run: what is read for it, RUN/report/audit.json, and its tables.

Shape suffixes: N pool rows of the matrix, T target columns, B rows of a block, G tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from influray.data.catalogue import Catalogue
from influray.evaluation import audit as judged
from influray.evaluation import copies
from influray.evaluation.known_answer import task_scores
from influray.evaluation.neighbours import Nearness, nearness
from influray.protocols import ArtifactMismatch
from influray.report import formatting
from influray.report.sheet import Table
from influray.store.artifact import read_json, read_manifest, require_manifest, write_json
from influray.store.attribution import Attribution
from influray.store.datastore import Datastore
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors

NEAR = 0.98  # cosine of features from which two rows are near-duplicates
SHOWN = 20  # lines of a table
KEPT = 1000  # entries of each list of audit.json
TEXT = 4000  # characters of a text in audit.json
SNIPPET = 100  # characters of a text in a table
TEXTS_AT_ONCE = 4096


def audit(run_dir: str | Path) -> dict[str, Any]:
    """Audit a scored run, write RUN/report/audit.json and return it: plain JSON, lists ordered from the worst.

    Raises:
        ArtifactMismatch: the run is not scored, or its parts do not belong together.
    """
    run = RunDirectory(run_dir)
    require_manifest(run.attribution, "score")
    attribution, pool = Attribution(run.attribution), Catalogue(run.data("pool"))
    tasks, row_N, score_NG = task_scores(attribution, attribution.groups, attribution.stats)
    stats = attribution.stats
    top_T = np.full(attribution.shape[1], -np.inf)
    for _, block_BT in attribution.blocks():
        np.maximum(top_T, block_BT.max(axis=0), out=top_T)
    notes: list[str] = []
    near, agreement_N = _neighbours(run, row_N, notes)
    names = _Names(pool)
    groups = copies.same_text(_texts(pool))
    known = {rows for group in groups for rows in itertools.pairwise(group.rows)}
    found = {
        "tasks": list(tasks),
        "rows": len(row_N),
        "notes": notes,
        "harmful": names.add(judged.plain(judged.harmful_rows(row_N, score_NG)[:KEPT])),
        "mislabelled": names.add(judged.plain(_mislabelled(run, row_N, agreement_N, notes)[:KEPT])),
        "duplicates": [
            {
                "kind": group.kind,
                "rows": list(group.rows),
                "ids": names.ids(group.rows),
                "text": names.text(group.rows[0]),
            }
            for group in (*groups, *(one for one in near if not known.issuperset(itertools.pairwise(one.rows))))
        ][:KEPT],
        "unhelped": judged.plain(
            judged.unhelped_targets(attribution.target_ids, attribution.groups, top_T, stats.mean_T, stats.std_T)
        ),
        "contaminated": names.add(_contaminated(run, pool))[:KEPT],
    }
    write_json(audit_path(run), found)
    return found


def audit_path(run: RunDirectory) -> Path:
    """Return where the audit of a run is kept."""
    return run.report.parent / "audit.json"


def read_audit(run: RunDirectory) -> dict[str, Any] | None:
    """Return what `audit` has written, None where it has not. Raises ArtifactMismatch where it is not JSON."""
    try:
        return read_json(audit_path(run))
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise ArtifactMismatch(f"{audit_path(run)}: not JSON ({error}); run `influray audit` again") from error


def audit_tables(found: dict[str, Any]) -> list[Table]:
    """Return the audit as tables, `SHOWN` lines each; every text of the pool is still to be escaped."""
    number = formatting.number
    lines = {
        "harmful": (
            "Rows harmful to most tasks",
            ("row", "tasks below -1", "tasks below 0", "mean z", "source", "text"),
            lambda one: (
                formatting.percent(one["below"], 0),
                formatting.percent(one["negative"], 0),
                number(one["mean"]),
            ),
        ),
        "mislabelled": (
            "Rows that look mislabelled",
            ("row", "score", "self-influence", "loss", "agreement", "source", "text"),
            lambda one: tuple(number(one[name], 3) for name in ("score", "self_influence", "loss", "agreement")),
        ),
        "contaminated": (
            "Pool rows that hold a target or a test",
            ("row", "of", "how", "share", "source", "text"),
            lambda one: (f"{one['split']} {one['other_id']}", one["kind"], formatting.percent(one["share"], 0)),
        ),
    }
    tables = []
    for name, (title, columns, numbers) in lines.items():
        rows = [(one["id"], *numbers(one), one["source"], one["text"]) for one in found[name][:SHOWN]]
        tables.append(Table(_titled(title, found[name]), columns, tuple(rows)))
    groups = [
        (
            ", ".join(one["ids"][:4]) + (" ..." if len(one["ids"]) > 4 else ""),
            str(len(one["rows"])),
            one["kind"],
            one["text"],
        )
        for one in found["duplicates"][:SHOWN]
    ]
    targets = [
        (one["id"], one["task"], number(one["top"]), number(one["influence"], 4), one["reason"])
        for one in found["unhelped"][:SHOWN]
    ]
    tables.append(
        Table(_titled("Groups of duplicates", found["duplicates"]), ("rows", "count", "kind", "text"), tuple(groups))
    )
    tables.append(
        Table(
            _titled("Targets that nothing helps", found["unhelped"]),
            ("target", "task", "top z", "top influence", "why"),
            tuple(targets),
        )
    )
    return [
        Table(table.title, table.columns, tuple(tuple(map(_snippet, row)) for row in table.rows))
        for table in tables
        if table.rows
    ]


def _titled(title: str, found: list[Any]) -> str:
    return f"{title} ({len(found)}{'+' if len(found) == KEPT else ''})"


def _snippet(text: str) -> str:
    flat = " ".join(text.split())
    return formatting.visible(flat if len(flat) <= SNIPPET else flat[: SNIPPET - 3] + "...")


def _mislabelled(run: RunDirectory, row_N: np.ndarray, agreement_N: np.ndarray | None, notes: list[str]) -> list[Any]:
    """Return the suspects, the likeliest first; none where features carry no loss or norm, which a note says."""
    if agreement_N is None:
        return []
    weights = read_manifest(run.attribution)
    assert weights is not None
    norms, losses = [], []
    for k in range(1, len(weights["weights"]) + 1):
        store = Datastore(run.features("pool", k))
        place_N = np.searchsorted(store.column("row"), row_N)
        columns = next(store.parts()).column_names
        norm = "grad_norm" if "grad_norm" in columns else "norm"
        if norm not in columns or "loss" not in columns:
            notes.append("mislabelled rows: these features carry no loss or norm; features.featurizer: gradient does")
            return []
        norms.append(store.column(norm)[place_N])
        losses.append(store.column("loss")[place_N])
    self_N = judged.self_influence(norms, weights["weights"])
    loss_N = np.sum([w * loss for w, loss in zip(weights["weights"], losses, strict=True)], axis=0)
    return judged.mislabelled_rows(row_N, self_N, loss_N, agreement_N)


def _neighbours(run: RunDirectory, row_N: np.ndarray, notes: list[str]) -> tuple[list[copies.Group], np.ndarray | None]:
    """Return the groups of near-duplicates and each row's agreement with its nearest; what cannot be, a note says."""
    try:
        vectors = PoolVectors(run)
    except ArtifactMismatch as error:
        notes.append(f"near-duplicates and mislabelled rows: {error}")
        return [], None
    found = nearness(vectors, NEAR)
    if found.sampled:
        notes += _sampled_notes(found, len(vectors))
    agreement_N = found.agreement_N[np.searchsorted(vectors.rows, row_N)]
    return copies.near_groups(vectors.rows[found.pair_E2]), agreement_N


def _sampled_notes(found: Nearness, rows: int) -> list[str]:
    """Return what is to be said where not every row was compared with every other."""
    measured = f"it found {found.found} of {found.known}" if found.known else "there was none to find"
    return [
        f"near-duplicates: {rows} rows are too many to compare each with all; they were looked for by signs of random "
        f"projections, and those found compared exactly. Of the pairs that differ and have a row among {found.sampled} "
        f"drawn ones, {measured}; rows with equal features are always found",
        f"mislabelled rows: agreement is that with the nearest of {found.sampled} drawn rows, not of all",
    ]


def _contaminated(run: RunDirectory, pool: Catalogue) -> list[dict[str, Any]]:
    held = {
        split: Catalogue(run.data(split)) for split in ("target", "test") if read_manifest(run.data(split)) is not None
    }
    texts = {split: list(_texts(catalogue)) for split, catalogue in held.items()}
    found = judged.plain(copies.contaminated(_texts(pool), texts))
    return [{**one, "other_id": held[one["split"]].ids[one["other"]]} for one in found]


def _texts(catalogue: Catalogue) -> Iterator[copies.Text]:
    for start in range(0, len(catalogue), TEXTS_AT_ONCE):
        records = catalogue.all_parsed(range(start, min(start + TEXTS_AT_ONCE, len(catalogue))))
        for row, record in enumerate(records, start=start):
            prompt = "\n".join(turn.text for turn in record.turns if turn.role != "assistant")
            answer = "\n".join(turn.text for turn in record.turns if turn.role == "assistant")
            yield copies.Text(row, copies.normalised(prompt), copies.normalised(answer))


class _Names:
    """What people know rows of the pool by."""

    def __init__(self, pool: Catalogue) -> None:
        self._pool = pool
        facts = pool.facts("id", "source")
        self._ids, self._sources = facts["id"], facts["source"]

    def ids(self, rows: tuple[int, ...]) -> list[str]:
        return [self._ids[row] for row in rows]

    def text(self, row: int) -> str:
        return formatting.visible(self._pool.texts(row, row + 1)[0].text[:TEXT])  # JSON cannot hold a lone surrogate

    def add(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the entries with the id, source and text of their row."""
        return [
            {**one, "id": self._ids[one["row"]], "source": self._sources[one["row"]], "text": self.text(one["row"])}
            for one in found[:KEPT]
        ]
