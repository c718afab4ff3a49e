"""The matrix of another run, whose rows are a part of this run's pool.

Rows are matched by id and must be the same records; the targets must be the same, in the same order.

Shape suffixes: L rows of the exact matrix, T its columns.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from functools import cached_property

import numpy as np

from influray.data.catalogue import Catalogue
from influray.protocols import ArtifactMismatch, Columns, ConfigError, DamagedArtifact
from influray.store.artifact import fingerprint, read_manifest, require_manifest
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory

KEY = "attribution.options.exact"


class ExactRun:
    """A scored run in the folder or at the URI `place`. It is only read: damage there is for its own config to mend."""

    def __init__(self, place: str) -> None:
        self.place = place

    @cached_property
    def directory(self) -> RunDirectory:
        """Its directory. Raises ConfigError where there is no matrix in it."""
        with self._named():
            if not self.place:
                raise ConfigError(f"{KEY}: required, but not given; name a scored run over a part of the pool")
            directory = RunDirectory(self.place)
            if read_manifest(directory.attribution) is None:
                raise ConfigError(
                    f"{KEY}: {self.place!r} holds no attribution matrix; name the run directory of a scored run over a "
                    "part of the pool, and run `influray score` on its config first"
                )
        return directory

    @property
    def digest(self) -> str:
        """What identifies the matrix and the pool that it is of, by their manifests. Raises as `directory`."""
        with self._named():
            matrix = require_manifest(self.directory.attribution, "score")
            pool = require_manifest(self.directory.data("pool"), "run")["digest"]
            return fingerprint([pool, [part["sha256"] for part in matrix["parts"]], matrix["beside"]])

    def __len__(self) -> int:
        """Return how many rows its matrix has. Raises as `directory`."""
        return len(self._matrix.rows)

    @cached_property
    def columns(self) -> Columns:
        """What its columns are; `rows` are those of its catalogue of targets. Raises as `directory`."""
        matrix = self._matrix
        return Columns(tuple(matrix.target_rows.tolist()), matrix.target_ids, matrix.groups)

    def require_apart(self, directory: RunDirectory) -> None:
        """Raise ConfigError where it is the run in `directory` itself, or one that this is a part of."""
        own = directory.path.resolve()
        if self.directory.path.resolve() in (own, *own.parents):
            raise ConfigError(
                f"{KEY}: {self.place!r} is the run that is to be made from it; name another run directory"
            )

    def matched(self, pool_ids: Sequence[str], targets: Columns) -> tuple[np.ndarray, np.ndarray]:
        """Return (row of this run's pool of each exact row, ascending [L] int64; A_LT float32 in that order).

        Args:
            pool_ids: the ids of this run's pool, by row.
            targets: all rows of this run's catalogue of targets.

        Raises:
            ConfigError: as `directory`; it has a row whose id is not in the pool, or other targets.
            ArtifactMismatch: a file of it is damaged.
        """
        with self._named():
            self._require_targets(targets)
            matrix, catalogue = self._matrix, Catalogue(self.directory.data("pool"))
            row_of = {one: row for row, one in enumerate(pool_ids)}
            ids = [catalogue.ids[row] for row in matrix.rows.tolist()]
            if absent := [one for one in ids if one not in row_of]:
                raise ConfigError(
                    f"{KEY}: {len(absent)} of the {len(ids)} rows of {self.place} are not in this run's pool (such as "
                    f"{absent[0]!r}); it must be a run over a part of the same pool"
                )
            row_L = np.array([row_of[one] for one in ids], np.int64)
            order_L = np.argsort(row_L)
            return row_L[order_L], np.asarray(matrix)[order_L]

    def require_same_records(self, pool: Catalogue, row_L: np.ndarray) -> None:
        """Raise ConfigError where a row of the pool has the id of an exact row, and is another record."""
        with self._named():
            mine = Catalogue(self.directory.data("pool"))
            place = {one: row for row, one in enumerate(mine.ids)}
            ids = pool.gather("id", row_L)
            other_L = np.array([place[one] for one in ids], np.int64)
            records = zip(ids, pool.gather("record", row_L), mine.gather("record", other_L), strict=True)
            for one, here, there in records:
                if here != there:
                    raise ConfigError(
                        f"{KEY}: the row {one!r} is another record in {self.place} than in this run's pool; its pool "
                        "must be a part of this one, byte for byte"
                    )

    @cached_property
    def _matrix(self) -> Attribution:
        with self._named():
            return Attribution(self.directory.attribution)

    def _require_targets(self, targets: Columns) -> None:
        known = all_targets(Catalogue(self.directory.data("target")))
        theirs, mine = (list(zip(one.ids, one.tasks, strict=True)) for one in (known, targets))
        if theirs == mine:
            return
        differ = (i for i, pair in enumerate(zip(theirs, mine, strict=False)) if pair[0] != pair[1])
        at = next(differ, min(len(theirs), len(mine)))
        found, wanted = (_target(one, at) for one in (theirs, mine))
        raise ConfigError(
            f"{KEY}: {self.place} has other targets than this run: number {at + 1} is {found} there and {wanted} here; "
            "give both the same data.targets"
        )

    @contextlib.contextmanager
    def _named(self) -> Iterator[None]:
        """Name the option in an error of the other run's files, and leave their repair to that run."""
        try:
            yield
        except DamagedArtifact as error:
            raise ArtifactMismatch(f"{KEY}: {error}; run the config of {self.place} again") from error


def _target(known: Sequence[tuple[str, str]], place: int) -> str:
    return "nothing" if place >= len(known) else f"{known[place][0]!r} of {known[place][1]}"


def all_targets(catalogue: Catalogue) -> Columns:
    """Return every row of a catalogue of targets."""
    return Columns(tuple(range(len(catalogue))), tuple(catalogue.ids), catalogue.groups)
