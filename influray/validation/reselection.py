"""The selectors of a run over another matrix: of other seeds, or of other targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from influray.config import Config, SelectorConfig
from influray.data.catalogue import Catalogue
from influray.data.pool_facts import PoolFacts
from influray.protocols import SelectionProblem, UnitRows
from influray.selectors.api import needs_features, resolve_limits, run_selector
from influray.store.attribution import Attribution
from influray.store.run_directory import RunDirectory


@dataclass(frozen=True)
class Columns:
    """Some columns of a matrix, one perhaps many times, as a matrix."""

    matrix: Attribution
    column_C: np.ndarray

    @property
    def groups(self) -> tuple[str, ...]:
        return tuple(self.matrix.groups[j] for j in self.column_C)

    @property
    def shape(self) -> tuple[int, int]:
        return self.matrix.shape[0], len(self.column_C)

    @property
    def rows(self) -> np.ndarray:
        return self.matrix.rows

    def blocks(self) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        for row_B, score_BT in self.matrix.blocks():
            yield row_B, score_BT[:, self.column_C]

    def gather(self, rows: np.ndarray) -> np.ndarray:
        return self.matrix.gather(rows)[:, self.column_C]


class Reselection:
    """Chooses by the selectors of a run again; its features are opened once for all of them."""

    def __init__(self, config: Config, directory: RunDirectory) -> None:
        self._root = Path(config.data.root)
        self._directory = directory

    @cached_property
    def _features(self) -> UnitRows:
        return Attribution(self._directory.attribution).features()

    def select(self, selector: SelectorConfig, matrix: Attribution | Columns) -> np.ndarray:
        """Return the catalogue rows, int64 in order of choice, that a selector of the run chooses by a matrix."""
        facts = PoolFacts(Catalogue(self._directory.data("pool")), matrix.rows)
        given = selector.budget if isinstance(selector.budget, int | float) else {"tokens": selector.budget.tokens}
        budget, limits = resolve_limits(given, selector.constraints, matrix.shape[0], self._root)
        features = self._features if needs_features(selector.method, selector.options, limits) else None
        problem = SelectionProblem(matrix, matrix.groups, budget, selector.seed, facts, limits, features)
        return run_selector(problem, selector.method, selector.options).rows
