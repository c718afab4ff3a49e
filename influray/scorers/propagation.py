"""What scorers share that carry the exact scores of some rows over to all rows, by features that are cheap to have.

Shape suffixes: B pool rows of a block, L landmarks (rows with exact scores and a cheap feature), E exact rows, T target
columns, D numbers of a vector over all checkpoints.
"""

from __future__ import annotations

import logging
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from influray.config import Config
from influray.data.catalogue import Catalogue
from influray.evaluation.rank_correlation import spearman
from influray.protocols import Arrays, Columns, DataError, FeatureRows, Scorer, Stores
from influray.registry import make, resolve
from influray.scorers.exact_run import ExactRun
from influray.scorers.options import require
from influray.store.encodings import widened
from influray.store.moments import column_moments, column_stats

FOLDS = 5  # of the landmarks, for the held-out correlation
LEAST = 4 * FOLDS  # landmarks: fewer in a fold have no order to speak of
LOW = 0.3  # a held-out correlation below it is warned of
logger = logging.getLogger(__name__)


class Propagating(Scorer):
    """The columns of another run's matrix, exact for its rows and foretold for all others.

    A class of this base says in `learn` what is kept of the landmarks, and in `foretell` what follows for other rows.
    How well the two agree is always measured, on landmarks that were held out (`findings`).
    """

    passes = 1
    name: ClassVar[str]  # in the registry

    def __init__(self, stores: Stores, exact: str = "", keep_exact: bool = True) -> None:
        require(self.name, stores, makes="vectors")
        self.exact = ExactRun(exact)
        self._weights = stores.weights
        self._keep = keep_exact

    @abstractmethod
    def learn(
        self, vector_LD: np.ndarray, score_LT: np.ndarray, used_T: np.ndarray, target: FeatureRows
    ) -> dict[str, np.ndarray]:
        """Return what `foretell` needs, by names of its own, and as "foretold" [L, T] the landmarks' scores, each by a
        fit without its fold (`folds`). `used_T` are the columns that are finite and not constant;
        `target` has the features that the targets have in this run."""

    @abstractmethod
    def foretell(self, vector_BD: np.ndarray, state: Arrays) -> np.ndarray:
        """Return the scores that follow for rows, [B, T] float64."""

    @abstractmethod
    def operations(self, L: int, D: int, T: int) -> tuple[float, float]:
        """Return about how many operations it takes to learn, once in one process, and to foretell a row."""

    def settings(self, state: Arrays) -> dict[str, float]:
        """Return what was chosen in the fit, for the manifest."""
        return {}

    def columns(self, targets: Columns) -> Columns:
        """Return the columns of the exact matrix. Raises ConfigError where there is none."""
        return self.exact.columns

    def start(self, pool: Catalogue, targets: Columns) -> dict[str, np.ndarray]:
        """Return what the pass is given: "row" [E] int64, the exact rows in this pool, and "exact" [E, T] float32.

        `targets` are all rows of the catalogue. Raises as `ExactRun.matched` and `ExactRun.require_same_records`.
        """
        row_E, exact_ET = self.exact.matched(pool.ids, targets)
        self.exact.require_same_records(pool, row_E)
        return {"row": row_E, "exact": exact_ET}

    def sums(self, number: int, pool: FeatureRows, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return the count, and under names of this block the rows and vectors of the landmarks in it."""
        found = {"count": np.array([len(pool)], np.float64)}
        here_b = np.flatnonzero(np.isin(pool.row_B, state["row"]))
        if len(here_b):
            row_b = pool.row_B[here_b]
            found[f"row_{row_b[0]}"] = row_b.astype(np.float64)
            found[f"vector_{row_b[0]}"] = joined(pool, self._weights, here_b)
        return found

    def fit(self, number: int, sums: Arrays, target: FeatureRows, state: Arrays) -> dict[str, np.ndarray]:
        """Return what `learn` does, with the exact rows and the held-out correlation of every column, "held_out" [T].

        It is the mean over folds of Spearman's within the fold: over all landmarks at once, the constants of the fits,
        each below the mean where its fold is above it, would pull the correlation of mere noise below 0.

        Raises:
            DataError: too few of the exact rows have a feature here.
        """
        names = [name.removeprefix("row_") for name in sums if name.startswith("row_")]
        row_L = np.concatenate([np.zeros(0), *(sums[f"row_{name}"] for name in names)]).astype(np.int64)
        if len(row_L) < LEAST:
            raise DataError(
                f"attribution.options.exact: {len(row_L)} rows of {self.exact.place} have a feature in this run, and "
                f"{LEAST} are the least that something can be learnt from"
            )
        order_L = np.argsort(row_L)
        vector_LD = np.concatenate([sums[f"vector_{name}"] for name in names])[order_L]
        score_LT = state["exact"][np.searchsorted(state["row"], row_L[order_L])].astype(np.float64)
        used_T = used_columns(score_LT)
        usable_LT = np.where(np.isfinite(score_LT).all(axis=0), score_LT, 0)
        learnt = self.learn(vector_LD, usable_LT, used_T, target)
        foretold_LT = learnt.pop("foretold")
        each = [spearman(usable_LT[fold], foretold_LT[fold]) for fold in folds(len(usable_LT))]
        held_out_T = np.where(used_T, np.mean(each, axis=0), np.nan)
        landmarks = np.array([len(row_L)], np.int64)
        fitted = {**learnt, "held_out": held_out_T, "landmarks": landmarks, **state}
        self._tell(fitted)
        return fitted

    def score(self, pool: FeatureRows, target: FeatureRows, state: Arrays) -> np.ndarray:
        """Return A [B, T] float32; the exact scores of rows that have them, unless `keep_exact` is off."""
        score_BT = self.foretell(joined(pool, self._weights), state).astype(np.float32)
        score_BT[:, ~np.isfinite(state["exact"]).all(axis=0)] = np.nan  # not finite there, so left out here
        if self._keep:
            place_B = np.minimum(np.searchsorted(state["row"], pool.row_B), len(state["row"]) - 1)
            known_B = state["row"][place_B] == pool.row_B
            score_BT[known_B] = state["exact"][place_B[known_B]]
        return score_BT

    def findings(self, state: Arrays) -> dict[str, Any]:
        """Return how well what is propagated agrees with what is exact, as the manifest keeps it.

        "landmarks" and "exact_rows"; "held_out", the correlation of `fit`: its mean over columns in use, None where
        there is none, "tasks" its mean over those of a task, "columns" of each, None where it takes no part; and what
        was chosen in the fit.
        """
        held_out_T = state["held_out"]
        tasks = self.exact.columns.tasks
        by_task = {task: held_out_T[[one == task for one in tasks]] for task in dict.fromkeys(tasks)}
        return {
            "landmarks": int(state["landmarks"][0]),
            "exact_rows": len(state["row"]),
            "held_out": _mean(held_out_T),
            "tasks": {task: _mean(found) for task, found in by_task.items()},
            "columns": [None if np.isnan(one) else one for one in held_out_T.tolist()],
            **self.settings(state),
        }

    def _tell(self, state: Arrays) -> None:
        found = self.findings(state)
        agreement = found["held_out"]
        if agreement is None:
            return
        settings = "".join(f", {name} {value:.3g}" for name, value in self.settings(state).items())
        logger.info(
            "what is propagated from %d rows agrees with what is exact at %.2f (Spearman, held out%s)",
            *(found["landmarks"], agreement, settings),
        )
        weak = [task for task, one in found["tasks"].items() if one is not None and one < LOW]
        if weak:
            logger.warning(
                "of %s little can be foretold from these features (held-out rank correlation %s), so that rows without "
                "exact scores are ordered mostly by chance there; see docs/cost.md",
                *(", ".join(weak), ", ".join(f"{found['tasks'][task]:.2f}" for task in weak)),
            )


def propagating_scorers(config: Config, cascade: bool = True) -> list[Propagating]:
    """Return the scorers of a config that read another run's matrix, with `cascade` that of its cheap pass too.

    They are made for stores that they can carry. Raises ConfigError as `registry.make`.
    """
    sections = [config.attribution, *([config.cascade.attribution] if cascade and config.cascade else [])]
    kinds = [(resolve("scorers", one.scorer, "attribution.scorer"), one) for one in sections]
    asked = [one for kind, one in kinds if issubclass(kind, Propagating)]
    return [make("scorers", one.scorer, one.options, Stores((1.0,))) for one in asked]


def joined(rows: FeatureRows, weights: Sequence[float], which: slice | np.ndarray = slice(None)) -> np.ndarray:
    """Return rows' vectors of all checkpoints one after the other, times the root of their weights, [B, D] float64."""
    parts = [np.sqrt(w) * widened(one[which], np.float64) for w, one in zip(weights, rows.feature_KBD, strict=True)]
    return np.concatenate(parts, axis=1)


def folds(rows: int) -> list[np.ndarray]:
    """Return the positions of `rows` rows in FOLDS parts, drawn, always the same, as equal in size as they can be."""
    # Raw outputs of PCG64, which numpy keeps the same in all versions.
    order = np.argsort(np.random.PCG64(np.random.SeedSequence(rows)).random_raw(rows), kind="stable")
    return [np.sort(part) for part in np.array_split(order, FOLDS)]


def used_columns(score_LT: np.ndarray) -> np.ndarray:
    """Return which columns are finite and not constant, as the matrix has it, [T] bool."""
    return column_stats(column_moments([(np.arange(len(score_LT)), score_LT)])).used_T


def _mean(value_T: np.ndarray) -> float | None:
    known = value_T[~np.isnan(value_T)]
    return float(known.mean()) if len(known) else None
