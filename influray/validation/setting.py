"""What an experiment sees of a run: the candidate rows, the records that are judged, the scorers, and measured losses.

Shape suffixes: N candidate rows, B rows of a block, T target records, M retrainings.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from influray.config_model import FinetuneConfig
from influray.config_validate import ValidateConfig
from influray.protocols import ConfigError
from influray.runtime.retraining_worker import Bench, Retraining, make_bench
from influray.steps.context import StepContext
from influray.store.artifact import read_manifest
from influray.store.attribution import Attribution
from influray.validation import draws
from influray.validation.scorers import (
    RANDOM,
    Judged,
    columns_of,
    judged_scorers,
    matrix_of,
    scorer_called,
    stores_of,
)


@dataclass(frozen=True)
class Setting:
    """A run under experiment. `context` has the config with the section `validate` that is run."""

    context: StepContext

    @property
    def config(self) -> ValidateConfig:
        return self.context.config.validation

    @cached_property
    def bench(self) -> Bench:
        """What retrainings have in common; reads the base's digest."""
        return make_bench(self.context.directory, self.context.config, {"base": self.context.model_digest})

    @cached_property
    def candidates(self) -> np.ndarray:
        """The catalogue rows that take part, ascending: rows of the run's own matrix."""
        rows = Attribution(self.context.directory.attribution).rows
        wanted = self.config.candidates
        return rows if wanted == "all" else draws.candidates(rows, wanted, self.config.seed)

    @cached_property
    def tokens(self) -> np.ndarray:
        """Tokens of the candidates."""
        return self.context.catalogue("pool").facts("tokens")["tokens"].astype(np.int64)[self.candidates]

    @cached_property
    def tasks(self) -> tuple[str, ...]:
        """The task of every target record, in the order of the catalogue."""
        return self.context.catalogue("target").groups

    @cached_property
    def test_tasks(self) -> tuple[str, ...]:
        """The task of every test record; none where no task has any."""
        manifest = read_manifest(self.context.directory.data("test"))
        return self.context.catalogue("test").groups if manifest is not None and manifest["rows"] else ()

    @cached_property
    def task_names(self) -> tuple[str, ...]:
        """The tasks, in the order of their first target."""
        return tuple(dict.fromkeys(self.tasks))

    @cached_property
    def scorers(self) -> list[Judged]:
        """The scorers that are judged, the run's own first. Raises as `judged_scorers`."""
        config = self.context.config
        return judged_scorers(config, stores_of(self.context.directory, config))

    def scorer(self, name: str, key: str) -> Judged:
        """Return a scorer by its name. Raises ConfigError naming `key`."""
        return scorer_called(self.scorers, name, key)

    def section(self, seed: int, **changes: Any) -> FinetuneConfig:
        """Return how a retraining with a seed trains."""
        config = self.context.config.retraining
        fields = {name: getattr(config, name) for name in FinetuneConfig.model_fields}
        return FinetuneConfig(**{**fields, **changes, "seed": seed})

    def with_every_seed(self, rows: np.ndarray, without: Sequence[int] = (), **changes: Any) -> list[Retraining]:
        """Return the retrainings on some catalogue rows, one for every seed."""
        given = tuple(rows.tolist()), tuple(int(row) for row in without)
        return [Retraining(given[0], self.section(seed, **changes), given[1]) for seed in self.config.seeds]

    def member(self, subsets: Sequence[np.ndarray], candidate_N: np.ndarray) -> np.ndarray:
        """Return which of the rows are in each of the subsets, bool [M, N]."""
        return np.array([np.isin(candidate_N, rows, assume_unique=True) for rows in subsets])

    def blocks(self, one: Judged, candidate_N: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Yield (places in `candidate_N`, scores [B, T] for every target record) of a scorer, NaN where it has none."""
        if one.scorer == RANDOM:
            yield np.arange(len(candidate_N)), draws.random_scores(len(candidate_N), len(self.tasks), self.config.seed)
            return
        matrix = matrix_of(self.context, one)
        column_T = columns_of(matrix, self.tasks)
        for row_B, score_BT in matrix.blocks():
            place_B = np.searchsorted(candidate_N, row_B)
            here_B = candidate_N[np.minimum(place_B, len(candidate_N) - 1)] == row_B
            if here_B.any():
                score_bT = score_BT[here_B].astype(np.float64)[:, column_T]
                score_bT[:, column_T < 0] = np.nan
                yield place_B[here_B], score_bT

    def task_scores(self, one: Judged) -> np.ndarray:
        """Return the mean over a task's targets of each candidate's standardised score, float64 [N, G].

        A target whose scores are all equal, or that a row has no score for, counts as 0; NaN where a row has none.
        Two passes over the blocks.
        """
        count_T, sum_T, square_T, shift_T = np.zeros((4, len(self.tasks)))
        for number, (_, score_BT) in enumerate(self.blocks(one, self.candidates)):
            finite_BT = np.isfinite(score_BT)
            if number == 0:  # it takes what the squares would lose to the mean
                shift_T = np.where(finite_BT, score_BT, 0).mean(axis=0)
            off_BT = np.where(finite_BT, score_BT - shift_T, 0)
            count_T += finite_BT.sum(axis=0)
            sum_T += off_BT.sum(axis=0)
            square_T += (off_BT**2).sum(axis=0)
        mean_T = sum_T / np.maximum(count_T, 1)
        std_T = np.sqrt(np.maximum(square_T / np.maximum(count_T, 1) - mean_T**2, 0))
        used_T = std_T > 1e-9 * std_T.max(initial=0)
        share_TG = np.array([[name == task for task in self.task_names] for name in self.tasks]) * used_T[:, None]
        share_TG = share_TG / np.maximum(share_TG.sum(axis=0), 1)
        found_NG = np.full((len(self.candidates), len(self.task_names)), np.nan)
        for place_B, score_BT in self.blocks(one, self.candidates):
            z_BT = (score_BT - shift_T - mean_T) / np.where(used_T, std_T, 1)
            known_BT = np.isfinite(z_BT)
            z_BG = np.where(known_BT, z_BT, 0) @ share_TG
            found_NG[place_B] = np.where(known_BT.any(axis=1, keepdims=True), z_BG, np.nan)
        return found_NG

    def losses(self, done: Sequence[Retraining]) -> dict[str, np.ndarray]:
        """Return what was measured in retrainings: split -> answer loss of every record, float64 [M, records]."""
        found = []
        for one in done:
            result = self.bench.committed(one)
            if result is None:
                raise ConfigError(f"{self.bench.place(one)}: gone since it was made; run `influray validate` again")
            found.append(result["losses"])
        return {split: np.array([one[split] for one in found]) for split in (found[0] if found else ())}

    def require_seeds(self, experiment: str) -> None:
        """Raise ConfigError where there are too few seeds for an interval over them."""
        if len(self.config.seeds) < 2:
            raise ConfigError(
                f"validate.seeds: {experiment} gives intervals over seeds, and one seed has no spread; 2 are enough"
            )

    def require_tests(self, experiment: str, tasks: Sequence[str]) -> None:
        """Raise ConfigError where a task has no test records."""
        without = [task for task in tasks if task not in self.test_tasks]
        if without:
            raise ConfigError(
                f"data.targets.{without[0]}.test: {experiment} is measured on records that no score has seen, and "
                f"{', '.join(without)} {'has' if len(without) == 1 else 'have'} none; name test records, or take other "
                f"tasks by validate.{experiment}.tasks"
            )
