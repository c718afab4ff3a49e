"""Which targets are enough: a few whose columns of the matrix stand for the others.

Shape suffixes: N pool rows of the matrix, B rows of a block, T target columns, U columns in use, K kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from influray.data.catalogue import Catalogue
from influray.protocols import AttributionSource, ConfigError
from influray.report.sheet import Table
from influray.selectors.api import select
from influray.store.artifact import require_manifest, write_bytes
from influray.store.attribution import Attribution
from influray.store.moments import ColumnStats
from influray.store.run_directory import RunDirectory

SHOWN = 20  # lines of a table


@dataclass(frozen=True)
class TargetCover:
    """The kept targets in order of choice, and for every target in use the kept one whose column is most like its own.

    `likeness` is the correlation of two columns over the pool's rows. `gain_K` is what each kept one added to the sum
    of likenesses to the nearest kept one. `left_out` are targets whose columns carry nothing.
    """

    ids: tuple[str, ...]
    tasks: tuple[str, ...]
    rows: Sequence[int]  # of the catalogue of targets
    kept_K: np.ndarray
    gain_K: np.ndarray
    used_U: np.ndarray
    nearest_U: np.ndarray
    likeness_U: np.ndarray
    left_out: Sequence[int]

    def as_plain(self) -> dict[str, Any]:
        """Return it as plain JSON: kept in order of choice, stand_ins by id."""
        stands = zip(self.used_U.tolist(), self.nearest_U.tolist(), self.likeness_U.tolist(), strict=True)
        return {
            "targets": len(self.ids),
            "kept": [
                {"id": self.ids[t], "task": self.tasks[t], "gain": gain, "stands_for": int((self.nearest_U == t).sum())}
                for t, gain in zip(self.kept_K.tolist(), self.gain_K.tolist(), strict=True)
            ],
            "stand_ins": {self.ids[t]: {"id": self.ids[near], "likeness": like} for t, near, like in stands},
            "mean_likeness": float(self.likeness_U.mean()),
            "carry_nothing": [self.ids[t] for t in self.left_out],
        }

    def tables(self) -> list[Table]:
        """Return what was kept of each task, the first kept, and the targets that have the poorest stand-ins."""
        kept, used = set(self.kept_K.tolist()), self.used_U.tolist()
        like = dict(zip(used, self.likeness_U.tolist(), strict=True))
        near = dict(zip(used, self.nearest_U.tolist(), strict=True))
        tasks = list(dict.fromkeys(self.tasks))
        of_task = {task: [t for t in used if self.tasks[t] == task] for task in tasks}
        counts: list[tuple[str, ...]] = [
            (task, str(len(of)), str(sum(t in kept for t in of)), f"{np.mean([like[t] for t in of]):.2f}")
            for task, of in of_task.items()
            if of
        ]
        chosen: list[tuple[str, ...]] = [
            (str(place), self.ids[t], self.tasks[t], str(int((self.nearest_U == t).sum())), f"{gain:.2f}")
            for place, (t, gain) in enumerate(zip(self.kept_K.tolist(), self.gain_K.tolist(), strict=True), 1)
        ]
        poorest = sorted((t for t in used if t not in kept), key=lambda t: like[t])
        alone: list[tuple[str, ...]] = [
            (self.ids[t], self.tasks[t], self.ids[near[t]], f"{like[t]:.2f}") for t in poorest
        ]
        return [
            Table("Kept of each task", ("task", "targets", "kept", "mean likeness"), tuple(counts)),
            Table("First kept", ("rank", "target", "task", "stands for", "adds"), tuple(chosen[:SHOWN])),
            Table("Poorest stand-ins", ("target", "task", "its stand-in", "likeness"), tuple(alone[:SHOWN])),
        ]


def cover_targets(run_dir: str | Path, keep: int | float) -> TargetCover:
    """Return which `keep` targets of a scored run stand for the others: a number, or a fraction of those in use.

    It maximises the sum over targets of the correlation with the nearest kept one (facility location over columns), by
    greedy steps: the maximum is at most 1 / (1 - 1/e) times as large. What a target asks of the pool is its column: two
    that rank all rows alike select alike, whatever their texts say.

    Source: the facility location of data subset selection, as in Wei, Iyer and Bilmes 2015, over columns of A.

    Raises:
        ConfigError: `keep` is no number of targets.
        ArtifactMismatch: the run is not scored.
    """
    run = RunDirectory(run_dir)
    run.require_made("data", "score")
    require_manifest(run.attribution, "score")
    attribution = Attribution(run.attribution)
    used_U = np.flatnonzero(attribution.stats.used_T)
    if not 0 < keep <= (len(used_U) if isinstance(keep, int) else 1) or keep * len(used_U) < 1:
        raise ConfigError(
            f"--keep: found {keep}, expected 1 to {len(used_U)} targets (whose columns carry something), or a fraction "
            "in (0, 1] of them"
        )
    likeness_UU = column_likeness(attribution, attribution.stats)
    ids = [attribution.target_ids[t] for t in used_U]
    found = select(likeness_UU, ids, keep, method="facility_location", normaliser="none")
    kept_K = np.asarray(found.rows)
    nearest_U = kept_K[likeness_UU[:, kept_K].argmax(axis=1)]
    return TargetCover(
        attribution.target_ids,
        attribution.groups,
        attribution.target_rows.tolist(),
        used_U[kept_K],
        np.asarray(found.merit),
        used_U,
        used_U[nearest_U],
        likeness_UU[np.arange(len(used_U)), nearest_U],
        np.flatnonzero(~attribution.stats.used_T).tolist(),
    )


def column_likeness(source: AttributionSource, stats: ColumnStats) -> np.ndarray:
    """Return the Pearson correlation of every pair of columns in use over all rows, [U, U] float64."""
    used = stats.used_T
    mean_U, std_U = stats.mean_T[used], stats.std_T[used]
    product_UU, rows = np.zeros((used.sum(), used.sum())), 0
    for _, block_BT in source.blocks():
        z_BU = (block_BT[:, used].astype(np.float64) - mean_U) / std_U
        product_UU += z_BU.T @ z_BU
        rows += len(z_BU)
    scale_U = np.sqrt(np.diagonal(product_UU))
    return product_UU / np.outer(scale_U, scale_U)


def write_targets(run_dir: str | Path, cover: TargetCover, folder: str | Path) -> list[Path]:
    """Write FOLDER/TASK.jsonl: the records of the kept targets as they were read, in the order of the files.

    Raises:
        ConfigError: a file is there already, or a column is a whole task's and no record's.
    """
    if any(cover.rows[target] < 0 for target in cover.kept_K.tolist()):
        raise ConfigError("--to: the columns of this run are tasks, not targets, so there is no record to write")
    catalogue = Catalogue(RunDirectory(run_dir).data("target"))
    files: dict[Path, list[bytes]] = {}
    for target in sorted(cover.kept_K.tolist()):
        path = Path(folder) / f"{cover.tasks[target]}.jsonl"
        if path.exists():
            raise ConfigError(f"--to: {path} is there already; name another folder")
        files.setdefault(path, []).append(catalogue.record(cover.rows[target]))
    for path, records in files.items():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_bytes(path, b"".join(record.rstrip(b"\n") + b"\n" for record in records))
    return list(files)
