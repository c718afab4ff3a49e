"""Why a row was chosen: which targets it serves, what it was worth at its turn, and which chosen rows are like it.

Shape suffixes: T columns of the attribution matrix, n chosen rows, F numbers of a vector, k neighbours.
"""

from __future__ import annotations

import threading
from functools import cached_property
from typing import Any

import numpy as np

from influray.ask.answers import number
from influray.ask.nearest import NearestRows
from influray.ask.query import UnknownId
from influray.config import Config
from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, DamagedArtifact, DataError
from influray.report.explorer.rows import MAX_TEXT, ChosenRows, open_chosen, plain
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_selection
from influray.store.vectors import PoolVectors

TARGETS, NEIGHBOURS = 10, 10  # listed


class Explainer:
    """Explains rows of a finished run. It needs the attribution matrix; vectors only for the neighbours.

    Raises:
        ArtifactMismatch: matrix or catalogues are not there.
    """

    def __init__(self, directory: RunDirectory, config: Config) -> None:
        self.directory = directory
        self.config = config
        directory.require_made("data", "featurize", "score", "select")
        self._attribution = Attribution(directory.attribution)
        self._pool, self._target = Catalogue(directory.data("pool")), Catalogue(directory.data("target"))
        self._nearest: dict[str, tuple[ChosenRows, NearestRows]] = {}  # by selection
        self._lock = threading.Lock()

    @property
    def names(self) -> list[str]:
        """The selections that are there, in the order of the config."""
        names = [selector.name for selector in self.config.selectors]
        return [name for name in names if read_manifest(self.directory.selection(name)) is not None]

    def explain(self, identity: str, selection: str = "") -> dict[str, Any]:
        """Return what a pool row is to a selection ("" = the first that holds it), as plain JSON.

        row, id, source, text, cut; selection, rank (from 1), merit and winner {id, task, text}, None where the row was
        not chosen; selections {name: rank}; tasks [{task, z}] by their mean standardised influence; targets, the
        columns that the row serves most [{id, task, z, influence, text}]; neighbours, the chosen rows whose vectors
        have the largest cosine with the row's [{row, id, source, rank, similarity}], None where the run has no
        vectors that can be compared.

        Raises:
            UnknownId: the pool has no such row.
            ConfigError: no such selection.
            DataError: the row is not in the matrix: it failed at a checkpoint.
        """
        row = self._row(identity)
        with self._lock:  # `open_chosen` and maps of parts are shared
            ranks = self._ranks(row)
            name = selection or next(iter(ranks), self.names[0] if self.names else "")
            chosen = open_chosen(self.directory.path, name) if name else None
            z_T, influence_T = self._influence(row)
            text = plain(self._pool.parsed(row))
            found: dict[str, Any] = {
                "row": row,
                "id": identity,
                "source": self._pool.cell(row, "source"),
                "text": text[:MAX_TEXT],
                "cut": len(text) > MAX_TEXT,
                "selection": name or None,
                "selections": ranks,
                "rank": None,
                "merit": None,
                "winner": None,
                "tasks": self._tasks(z_T),
                "targets": self._targets(z_T, influence_T),
                "neighbours": self._neighbours(row, chosen),
            }
            if chosen is not None and name in ranks:
                facts = chosen.facts(ranks[name] - 1)
                column = int(read_selection(self.directory.selection(name)).column[ranks[name] - 1])
                winner = None if column < 0 else self._column(column)
                found |= {"rank": facts["rank"], "merit": facts["merit"], "winner": winner}
            return found

    def _row(self, identity: str) -> int:
        try:
            return self._pool.find(identity)
        except DataError:
            raise UnknownId(f"id: the pool has no row {identity[:200]!r}; it may stand in the quarantine") from None

    def _ranks(self, row: int) -> dict[str, int]:
        found = {}
        for name in self.names:
            place = np.flatnonzero(open_chosen(self.directory.path, name).row_n == row)
            if len(place):
                found[name] = int(place[0]) + 1
        return found

    def _influence(self, row: int) -> tuple[np.ndarray, np.ndarray]:
        """Return the row's line of the matrix, standardised (NaN where a column is left out) and as it is, [T]."""
        stats = self._attribution.stats
        line_T = self._attribution.gather(np.array([row]))[0].astype(np.float64)
        scale_T = np.where(stats.used_T, stats.std_T, np.nan)
        return (line_T - stats.mean_T) / scale_T, line_T

    def _tasks(self, z_T: np.ndarray) -> list[dict[str, Any]]:
        groups_T = np.array(self._attribution.groups, dtype=object)
        used_T = self._attribution.stats.used_T
        names = list(dict.fromkeys(groups_T[used_T].tolist()))
        found = [{"task": name, "z": number(float(z_T[used_T & (groups_T == name)].mean()))} for name in names]
        return sorted(found, key=lambda one: -(one["z"] or 0.0))

    def _targets(self, z_T: np.ndarray, influence_T: np.ndarray) -> list[dict[str, Any]]:
        order_T = np.argsort(-np.where(np.isfinite(z_T), z_T, -np.inf), kind="stable")[:TARGETS]
        return [
            {**self._column(j), "z": number(float(z_T[j])), "influence": number(float(influence_T[j]))}
            for j in order_T.tolist()
            if np.isfinite(z_T[j])
        ]

    def _column(self, j: int) -> dict[str, Any]:
        row = int(self._attribution.target_rows[j])
        text = plain(self._target.parsed(row))[:MAX_TEXT] if row >= 0 else ""
        return {"id": self._attribution.target_ids[j], "task": self._attribution.groups[j], "text": text}

    def _neighbours(self, row: int, chosen: ChosenRows | None) -> list[dict[str, Any]] | None:
        if self._vectors is None or chosen is None:
            return None
        vectors = self._vectors
        kept, rows = self._nearest.get(chosen.name, (None, None))
        if rows is None or kept is not chosen:
            rows = NearestRows(vectors, vectors.positions_of(chosen.row_n))
            self._nearest[chosen.name] = (chosen, rows)
        position = vectors.positions_of(np.array([row]))
        own_F = vectors.take(position)[0]
        place_k, cosine_k = rows.nearest(own_F, NEIGHBOURS, without=int(position[0]))
        found = [chosen.facts(place) for place in place_k.tolist()]
        return [
            {**{key: facts[key] for key in ("row", "id", "source", "rank")}, "similarity": number(cosine)}
            for facts, cosine in zip(found, cosine_k.tolist(), strict=True)
        ]

    @cached_property
    def _vectors(self) -> PoolVectors | None:
        try:
            return PoolVectors(self.directory)
        except DamagedArtifact:
            raise
        except ArtifactMismatch:  # of a scorer without vectors, or their store was deleted: the rest can be told
            return None
