"""The audit of a run: what is read for it, RUN/report/audit.json, and its tables.

Shape suffixes: N pool rows of the matrix, T target columns, B rows of a block, G tasks.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.cells import cell_len, set_cell_size

from influray import formatting
from influray.data.catalogue import Catalogue
from influray.evaluation import audit as judged
from influray.evaluation import copies
from influray.evaluation.known_answer import task_scores
from influray.evaluation.neighbours import Nearness, nearness
from influray.protocols import ArtifactMismatch, DamagedArtifact
from influray.report.sheet import Table
from influray.report.terminal import GAP, NARROWEST
from influray.store.artifact import read_manifest, read_sealed, require_manifest, write_sealed
from influray.store.attribution import Attribution
from influray.store.checks import damage
from influray.store.datastore import Datastore
from influray.store.run_directory import RunDirectory
from influray.store.vectors import PoolVectors

NEAR = 0.98  # cosine of features from which two rows are near-duplicates
SHOWN = 20  # lines of a table
KEPT = 1000  # entries of each list of audit.json
TEXT = 4000  # characters of a text in audit.json
SNIPPET = 100  # characters of a text in a table, and the least where the terminal is narrow
SHORT = 28
WIDE = 120  # columns; in a narrower terminal names beside a text are cut to SIDE
SIDE = 12
ENOUGH = 12  # with less room than this for the text the other columns go below


def audit(run_dir: str | Path) -> dict[str, Any]:
    """Audit a scored run, write RUN/report/audit.json and return it: plain JSON, lists ordered from the worst.

    Raises:
        ArtifactMismatch: the run is not scored, or its parts do not belong together.
    """
    run = RunDirectory(run_dir)
    run.require_made("data", "featurize", "score")
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
    groups = copies.same_text(copies.texts_of(pool))
    known = {rows for group in groups for rows in itertools.pairwise(group.rows)}
    harmful = judged.plain(judged.harmful_rows(row_N, score_NG))
    contaminated = contamination(run, pool)
    found = {
        "tasks": list(tasks),
        "rows": len(row_N),
        "notes": notes,
        "exclude": {
            "harmful": names.ids([one["row"] for one in harmful]),
            "copies": names.ids(_repeated((*groups, *near))),
            "contaminated": names.ids(sorted({one["row"] for one in contaminated})),
        },
        "harmful": names.add(harmful),
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
        "contaminated": names.add(contaminated),
    }
    write_sealed(audit_path(run), found)
    run.record("audit", {"rows": len(attribution.rows)})
    return found


def audit_path(run: RunDirectory) -> Path:
    """Return where the audit of a run is kept."""
    return run.report.parent / "audit.json"


def read_audit(run: RunDirectory) -> dict[str, Any] | None:
    """Return what `audit` has written, None where it has not. Raises DamagedArtifact where it is changed or gone."""
    try:
        return {name: value for name, value in read_sealed(audit_path(run)).items() if name != "schema"}
    except FileNotFoundError:
        if "audit" in run.read():
            raise damage(audit_path(run), "gone") from None
        return None


def exclusions(found: dict[str, Any]) -> tuple[str, list[str]]:
    """Return the file of ids that `constraints.exclude` takes, and ids that one line cannot hold.

    In it are the harmful rows, all but the first of each group of copies, and the contaminated rows. Rows that look
    mislabelled are not: they are ranked, not judged.
    """
    ids = dict.fromkeys(identity for kind in found["exclude"].values() for identity in kind)
    odd = [identity for identity in ids if "\n" in identity or identity.endswith("\r") or not identity.strip()]
    return "".join(f"{identity}\n" for identity in ids if identity not in set(odd)), odd


def audit_tables(found: dict[str, Any], width: int = 160) -> list[Table]:
    """Return the audit as tables for a terminal, `SHOWN` lines each; every text of the pool is still to be escaped.

    A row's id and its text stand side by side whatever the width; numbers for which there is no room come last.
    """
    number = formatting.number
    tables = []
    for name, (title, columns, numbers) in _lines().items():
        rows = [(one["id"], one["text"], *numbers(one), one["source"]) for one in found[name][:SHOWN]]
        tables.append(_fitted(_titled(title, found[name]), ("row", "text", *columns, "source"), rows, width))
    groups = [
        (
            ", ".join(one["ids"][:4]) + (" ..." if len(one["ids"]) > 4 else ""),
            one["text"],
            str(len(one["rows"])),
            one["kind"],
        )
        for one in found["duplicates"][:SHOWN]
    ]
    title = _titled("Groups of duplicates", found["duplicates"])
    tables.append(_fitted(title, ("rows", "text", "count", "kind"), groups, width))
    targets = [
        (one["id"], one["task"], number(one["top"]), number(one["influence"], 4), one["reason"])
        for one in found["unhelped"][:SHOWN]
    ]
    title = _titled("Targets that nothing helps", found["unhelped"])
    rows = tuple(tuple(_snippet(cell, SNIPPET) for cell in row) for row in targets)
    tables.append(Table(title, ("target", "task", "top z", "top influence", "why"), rows))
    return [table for table in tables if table.rows]


def _lines() -> dict[str, tuple[str, tuple[str, ...], Callable[[dict[str, Any]], tuple[str, ...]]]]:
    """Return by list of the audit: title, columns of numbers, and these of one entry."""
    number, percent = formatting.number, formatting.percent
    return {
        "harmful": (
            "Rows harmful to most tasks",
            ("tasks < -1", "tasks < 0", "mean z"),
            lambda one: (percent(one["below"], 0), percent(one["negative"], 0), number(one["mean"])),
        ),
        "mislabelled": (
            "Rows ranked by how mislabelled they look, the likeliest first",
            ("score", "self-influence", "loss", "agreement"),
            lambda one: tuple(number(one[name], 3) for name in ("score", "self_influence", "loss", "agreement")),
        ),
        "contaminated": (
            "Pool rows that hold a target or a test",
            ("of", "how", "share"),
            lambda one: (f"{one['split']} {one['other_id']}", one["kind"], percent(one["share"], 0)),
        ),
    }


def _fitted(title: str, columns: tuple[str, ...], rows: list[tuple[str, ...]], width: int) -> Table:
    """Return a table whose second column, the text, is as long as the terminal lets it be beside the first."""
    most = SNIPPET if width >= WIDE else SIDE
    flat = [tuple(_snippet(cell, SNIPPET if c < 2 else most) for c, cell in enumerate(row)) for row in rows]
    wide = [max((cell_len(row[c]) for row in flat), default=0) for c in range(len(columns))]
    wide = [max(w, cell_len(head)) for w, head in zip(wide, columns, strict=True)]
    others = sum(w + GAP for w in wide[2:])
    first = min(wide[0], width // 2)
    first = max(min(first, width - others - GAP - ENOUGH), min(first, NARROWEST))  # it folds
    beside = width - first - GAP
    room = beside - others
    longest = min(SNIPPET, room) if room >= ENOUGH else max(SHORT, min(SNIPPET, beside))
    return Table(title, columns, tuple((row[0], _snippet(row[1], longest), *row[2:]) for row in flat))


def _repeated(groups: Iterable[copies.Group]) -> list[int]:
    """Return the rows of groups but for the first of each, and of what several groups join."""
    pairs = [(group.rows[0], row) for group in groups for row in group.rows[1:]]
    joined = copies.near_groups(np.array(pairs, np.int64).reshape(-1, 2))
    return sorted(row for group in joined for row in group.rows[1:])


def _titled(title: str, found: list[Any]) -> str:
    return f"{title} ({len(found)}{'+' if len(found) == KEPT else ''})"


def _snippet(text: str, most: int) -> str:
    flat = formatting.visible(" ".join(text.split()))
    if cell_len(flat) <= most:
        return flat
    return set_cell_size(flat, most - 3).rstrip() + "..."


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
    except DamagedArtifact:
        raise
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


def contamination(run: RunDirectory, pool: Catalogue) -> list[dict[str, Any]]:
    """Return the rows of a catalogue that hold a target or test record of the run, as plain JSON."""
    held = {
        split: Catalogue(run.data(split)) for split in ("target", "test") if read_manifest(run.data(split)) is not None
    }
    texts = {split: list(copies.texts_of(catalogue)) for split, catalogue in held.items()}
    found = judged.plain(copies.contaminated(copies.texts_of(pool), texts))
    return [{**one, "other_id": held[one["split"]].ids[one["other"]]} for one in found]


class _Names:
    """What people know rows of the pool by."""

    def __init__(self, pool: Catalogue) -> None:
        self._pool = pool
        facts = pool.facts("id", "source")
        self._ids, self._sources = facts["id"], facts["source"]

    def ids(self, rows: Sequence[int]) -> list[str]:
        return [self._ids[row] for row in rows]

    def text(self, row: int) -> str:
        return formatting.visible(self._pool.texts(row, row + 1)[0].text[:TEXT])  # JSON cannot hold a lone surrogate

    def add(self, found: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Return the entries with the id, source and text of their row."""
        return [
            {**one, "id": self._ids[one["row"]], "source": self._sources[one["row"]], "text": self.text(one["row"])}
            for one in found[:KEPT]
        ]
