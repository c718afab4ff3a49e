"""A sample of the pool as a pool of its own, and the matrices that recipes make of it, under RUN/validate/pilot.

What is made lies by what it is made from, so that recipes share a warmup or features where they can, and more recipes
or the same ones go on from what is there.

Shape suffixes: N rows of the sample, n rows of a recipe's catalogue.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from influray.config import Config, SelectorConfig
from influray.config_base import as_written
from influray.config_model import WarmupConfig
from influray.config_select import AutoBudget, BoundsConfig, ConstraintsConfig, TokenBudget
from influray.data.catalogue import Catalogue
from influray.data.subset import build_subset
from influray.registry import WARMED, featurizer_reads
from influray.selectors.api import read_ids
from influray.steps.cheap_pass import cheap_config
from influray.steps.context import StepContext
from influray.steps.data import data
from influray.steps.featurize import featurize
from influray.steps.score import score
from influray.steps.subject import settle_checkpoints
from influray.steps.train import warmup
from influray.store.artifact import fingerprint, read_manifest
from influray.store.attribution import Attribution
from influray.store.row_view import RowView
from influray.store.run_directory import RunDirectory
from influray.validation import draws
from influray.validation.reselection import Reselection

PILOT = "pilot"  # the experiment, and the folder of what recipes make, under RUN/validate
SPLITS = ("pool", "target", "test")


@dataclass(frozen=True)
class Chosen:
    """What a recipe made of the sample: its matrix, and where its features and its catalogue lie."""

    matrix: Attribution | RowView
    directory: RunDirectory


class Sample:
    """A part of the pool as a pool of its own, and the matrices that recipes make of it."""

    def __init__(self, context: StepContext, source: RunDirectory, rows: int, seed: int) -> None:
        self._context, self._source, self._seed = context, source, seed
        self._whole = Catalogue(source.data("pool"))
        self.row_N = draws.candidates(np.arange(len(self._whole)), rows, seed)
        self.share = Fraction(len(self.row_N), len(self._whole))
        ids = np.asarray(self._whole.ids, object)[self.row_N].tolist()
        self._places: dict[str, int] = {one: place for place, one in enumerate(ids)}

    @cached_property
    def full(self) -> Config:
        """The config of the full recipe, for the sample."""
        return self.fitted(self._context.config)

    def fitted(self, config: Config) -> Config:
        """Return a config whose numbers of rows and tokens are those that the sample has of the whole.

        A warmup trains on as many rows as it would there, or on all that there are.
        """
        selectors = tuple(map(self._fitted, config.selectors))
        changed: dict[str, Any] = {"warmup": self._warmed(config.warmup), "selectors": selectors}
        if config.cascade is not None and (cheap := config.cascade.warmup) is not None:
            changed["cascade"] = config.cascade.model_copy(update={"warmup": self._warmed(cheap)})
        return config.model_copy(update=changed)

    def _warmed(self, warmup: WarmupConfig) -> WarmupConfig:
        if warmup.train_on == "targets":  # which are all there
            return warmup
        return warmup.model_copy(update={"fraction": min(1.0, warmup.fraction / float(self.share))})

    def chosen(self, config: Config) -> Chosen:
        """Return what a config, that of a recipe, makes of the sample. What is missing is made.

        Raises: as the steps of a run.
        """
        if config.cascade is None:
            directory = self._scored(config)
            return Chosen(Attribution(directory.attribution), directory)
        exact = self._scored(config.model_copy(update={"cascade": None}))
        cheap = settle_checkpoints(cheap_config(config, ""))
        place = self._scored(cheap)
        passed_n = np.sort(Reselection(cheap, place).select(cheap.selectors[0], Attribution(place.attribution)))
        matrix = Attribution(exact.attribution)
        passed_n = np.intersect1d(passed_n, matrix.rows, assume_unique=True)
        return Chosen(RowView(matrix, passed_n, matrix.groups), exact)

    def rows_of(self, directory: RunDirectory) -> np.ndarray:
        """Return the place in the sample of every row of a recipe's catalogue, int64, -1 for none."""
        return np.array([self._places.get(one, -1) for one in Catalogue(directory.data("pool")).ids], np.int64)

    def tokens_of(self, directory: RunDirectory) -> int:
        """Return the tokens of a recipe's catalogue."""
        return int(Catalogue(directory.data("pool")).facts("tokens")["tokens"].astype(np.int64).sum())

    def _scored(self, config: Config) -> RunDirectory:
        """Return the directory of a config's matrix, with all that it is made from; that lies by what it is made of."""
        plain = config.model_dump(mode="json")
        reads = featurizer_reads(config.features.featurizer) in WARMED
        before = plain["warmup"] if reads else self.full.model_dump(mode="json")["warmup"]
        place = fingerprint([plain["model"], self._read(plain["data"]), before, self._seed, len(self.row_N)])[:12]
        kind = fingerprint(plain["features"])[:12]
        scores = fingerprint([plain["features"], plain["attribution"]])[:12]
        path = self._context.directory.validation / PILOT / place
        directory = RunDirectory(path, f"features-{kind}", f"scores-{scores}")
        beside = self._context.beside(config, directory)
        self._catalogues(beside, config)
        if reads:
            warmup(beside)
        featurize(beside)
        score(beside)
        return directory

    def _catalogues(self, beside: StepContext, config: Config) -> None:
        """Bring the catalogues of a recipe up to date: those of the sample, read anew where it reads otherwise."""
        directory = beside.directory
        whole = _catalogues(self._source)
        mine, theirs = self._context.config, config
        if (mine.model.base, mine.model.revision, mine.model.chat_template, mine.data) != (
            *(theirs.model.base, theirs.model.revision, theirs.model.chat_template),
            theirs.data.model_copy(update={"targets": mine.data.targets}),
        ):
            reader = self._context.beside(config, RunDirectory(directory.path / "whole"))
            data(reader)
            whole = _catalogues(reader.directory)
        pool, row_N = whole["pool"], self.row_N
        if pool.digest != self._whole.digest:
            row_N = np.array([row for row, one in enumerate(pool.ids) if one in self._places], np.int64)
        for split, catalogue in whole.items():
            row_n = row_N if split == "pool" else np.arange(len(catalogue))
            build_subset(directory.data(split), catalogue, row_n, {"pilot": {"rows": len(pool)}})

    @staticmethod
    def _read(section: Mapping[str, Any]) -> dict[str, Any]:
        return {**section, "targets": None}  # a cascade's cheap pass names no test records

    def _fitted(self, selector: SelectorConfig) -> SelectorConfig:
        """Return a selector with the budget and the limits that the sample has of it."""
        budget, limits = selector.budget, selector.constraints
        if isinstance(budget, float):  # of the whole sample, also where a part of it passed a cascade
            budget = max(1, int(as_written(budget) * len(self.row_N)))
        elif isinstance(budget, int):
            budget = max(1, round(budget * self.share))
        elif isinstance(budget, TokenBudget):
            budget = TokenBudget(tokens=max(1, round(budget.tokens * self.share)))
        elif isinstance(budget, AutoBudget) and isinstance(budget.most, int):
            budget = budget.model_copy(update={"most": max(1, round(budget.most * self.share))})
        root = Path(self._context.config.data.root)
        changed: dict[str, Any] = {
            key: tuple(one for one in read_ids(f"constraints.{key}", getattr(limits, key), root) if one in self._places)
            for key in ("include", "exclude")
        }
        for key in ("sources", "tasks"):
            changed[key] = {name: self._bounds(bounds) for name, bounds in getattr(limits, key).items()}
        made = ConstraintsConfig(**{**{name: getattr(limits, name) for name in limits.model_fields_set}, **changed})
        return selector.model_copy(update={"budget": budget, "constraints": made})

    def _bounds(self, given: BoundsConfig) -> BoundsConfig:
        low, high = given.min, given.max
        low = int(low * self.share) if isinstance(low, int) else low
        high = -int(-high * self.share // 1) if isinstance(high, int) else high
        return BoundsConfig(min=low, max=high)


def _catalogues(directory: RunDirectory) -> dict[str, Catalogue]:
    """Return the catalogues of a directory by split; one that was not asked for is not there."""
    there = (split for split in SPLITS if read_manifest(directory.data(split)) is not None)
    return {split: Catalogue(directory.data(split)) for split in there}
