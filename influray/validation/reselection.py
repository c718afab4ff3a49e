"""The selectors of a run over another matrix: of other seeds, or of other targets."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path

import numpy as np

from influray.config import Config, SelectorConfig
from influray.config_select import AutoBudget
from influray.data.catalogue import Catalogue
from influray.data.pool_facts import PoolFacts
from influray.protocols import SelectionProblem, UnitRows
from influray.selectors.api import needs_features, resolve_limits, run_selector, settle_budget
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.store.column_view import ColumnView
from influray.store.features import run_features
from influray.store.row_view import RowView
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_summary


class Reselection:
    """Chooses by the selectors of a run again; its features are opened once for all of them."""

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self._root, self._roles = Path(config.data.root), config.data.roles
        self._directory = directory

    @cached_property
    def _features(self) -> UnitRows:
        weights = Attribution(self._directory.attribution).manifest["weights"]
        return run_features(self._directory.features("pool", 1).parent, [float(weight) for weight in weights])

    def select(self, selector: SelectorConfig, matrix: Attribution | ColumnView | RowView) -> np.ndarray:
        """Return the catalogue rows, int64 in order of choice, that a selector of the run chooses by a matrix.

        A budget that chose itself stays what it came to, where the selection is there: choices are then of one size.
        """
        pool = Catalogue(self._directory.data("pool"))
        facts = PoolFacts(pool, matrix.rows)
        given = selector.model_dump(mode="json")["budget"]
        folder, never = self._directory.selection(selector.name), pool.never_scored
        if isinstance(selector.budget, AutoBudget) and read_manifest(folder) is not None:
            given = min(matrix.shape[0], read_summary(folder)["budget"]["examples"])
        given, _ = settle_budget(given, matrix, matrix.groups, selector.seed, self._roles, never)
        budget, limits = resolve_limits(given, selector.constraints, matrix.shape[0], self._root, never)
        features = self._features if needs_features(selector.method, selector.options, limits) else None
        problem = SelectionProblem(matrix, matrix.groups, budget, selector.seed, facts, limits, features)
        return run_selector(problem, selector.method, selector.options, self._roles).rows
