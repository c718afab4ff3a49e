"""Rows that a run has never seen, made and scored as its pool's are, under RUN/validate/value.

They are a pool of their own beside the run's targets, checkpoints, fits and column moments, none of which is made
again: a row has the line in their matrix that it would have in the run's. What is made lies by the content of the files
and of the run's matrix, so that an interrupted price goes on and a known one is told at once.

Shape suffixes: N rows of the pool, n new rows, E pairs.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from influray.data.catalogue import Catalogue
from influray.data.entries import entry_files
from influray.data.files import file_digest
from influray.evaluation.copies import joined, same_text_earlier, texts_of
from influray.evaluation.neighbours import near_earlier
from influray.protocols import ArtifactMismatch, DamagedArtifact, DataError
from influray.report.audit import contamination
from influray.steps.context import StepContext
from influray.steps.data import other_pool
from influray.steps.featurize import featurize, plan
from influray.steps.score import Settled, score, settled
from influray.store.artifact import fingerprint
from influray.store.attribution import Attribution
from influray.store.features import run_features
from influray.store.run_directory import RunDirectory

VALUE = "value"  # the folder under RUN/validate


@dataclass(frozen=True)
class Copy:
    """A new row that says what another says; `of` is "pool", or "new" for an earlier new row."""

    row: int
    kind: str  # "same text" or "near"
    of: str
    other: int


class Offer:
    """New rows of some files, scored against a run."""

    def __init__(self, context: StepContext, files: Sequence[str]) -> None:
        """Make what is not there yet.

        Raises:
            DataError: a file is not there, or its rows cannot be used.
            ArtifactMismatch: the run is not scored, or this installation would make other features of its targets.
        """
        self.run = context.directory
        config = context.config.model_copy(update={"cascade": None})  # every new row is scored
        sources = entry_files(files, Path(), "--data", config.data.columns)
        known = settled(self.run, config)
        content = [[file_digest(file), file.reading.facts()] for file in sources]
        self.place = f"validate/{VALUE}/{fingerprint([known.columns.manifest['fingerprint'], content])[:12]}"
        self.directory = RunDirectory(self.run.address, scores_at=self.place, pool_at=self.place)
        beside = context.beside(config, self.directory)
        with context.progress.step("data"):
            try:
                self.catalogue = other_pool(beside, sources)
            except DataError as error:
                raise DataError(str(error).replace("data.pool:", "--data:", 1)) from error
        _make(beside, known)
        self.matrix = Attribution(self.directory.attribution)

    @cached_property
    def contaminated(self) -> np.ndarray:
        """The new rows that hold a target or test record of the run, int64 ascending (`evaluation.copies`)."""
        return np.unique(np.array([one["row"] for one in contamination(self.run, self.catalogue)], np.int64))

    def copies(self, near: float) -> tuple[list[Copy], str]:
        """Return the new rows that are copies, ascending, and what is to be said of how they were looked for.

        A row of the same text as a pool row, or else as an earlier new row, is a copy of the first such row; or else
        one whose features have a cosine of `near` or more with those of another, directly or over others.
        """
        of_pool, of_new = same_text_earlier(texts_of(self.catalogue), texts_of(Catalogue(self.run.data("pool"))))
        found = {row: Copy(row, "same text", "pool", other) for row, other in of_pool.items()}
        found |= {row: Copy(row, "same text", "new", other) for row, other in of_new.items()}
        near_to, note = self._near(near)
        return [one for _, one in sorted({**near_to, **found}.items())], note

    def _near(self, near: float) -> tuple[dict[int, Copy], str]:
        try:
            pool, new = (
                run_features(where.features("pool", 1).parent, [float(one) for one in self.matrix.manifest["weights"]])
                for where in (self.run, self.directory)
            )
        except DamagedArtifact:
            raise
        except ArtifactMismatch:
            return {}, "near copies: these features have no vectors to compare; copies are told by their text alone"
        pair_E2, exact = near_earlier(pool, new, near)
        N = len(pool)
        label = joined(pair_E2, N + len(new))
        found = {}
        for place in (np.flatnonzero(label[N:] < np.arange(N, N + len(new))) + N).tolist():
            first, row = int(label[place]), int(new.rows[place - N])
            copy = ("pool", int(pool.rows[first])) if first < N else ("new", int(new.rows[first - N]))
            found[row] = Copy(row, "near", *copy)
        note = "near copies: too many rows to compare every two; found by signs of random projections, some are missed"
        return found, "" if exact else note


def _make(beside: StepContext, known: Settled) -> None:
    """Make the features of the new rows and their lines of the matrix, where they are not there."""
    directory, progress = beside.directory, beside.progress
    # What the run has is read and never made again: its own matrix stands on it.
    if any(store.missing() for store in plan(beside) if store.split == "target"):
        raise ArtifactMismatch(
            f"{directory.features('target', 1)}: not what this installation makes of the run's targets (another torch "
            f"or transformers, base or checkpoint), and new rows would not compare; run `influray run "
            f"{directory.config_path}` first"
        )
    with progress.step("featurize"):
        featurize(beside)
    with progress.step("score"):
        score(beside, known)
