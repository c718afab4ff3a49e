"""Mixture: a run as ratios of sources, for who mixes sources and does not choose rows.

Two ways to them. A selection implies the shares that sources have among its rows. The lasso asks which sources, mixed,
point where a task's targets point: it sees no single row, and so cannot leave out a source's bad ones.

Shape suffixes: S sources, T target columns, C columns of a task, G tasks, F numbers of a vector, R repeats.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from influray.config import Config
from influray.data.catalogue import Catalogue
from influray.formatting import ABSENT, count, number, percent
from influray.protocols import ArtifactMismatch, ConfigError
from influray.report.selections import committed
from influray.report.sheet import Table
from influray.store.attribution import Attribution
from influray.store.column_view import columns_of
from influray.store.run_directory import RunDirectory
from influray.store.selection import read_table
from influray.store.vectors import PoolVectors, target_vectors
from influray.validation.reselection import Reselection

SHOWN = 20  # sources of a table
BLOCK_ROWS = 1024
FOLDS = 5
RATIOS = 2.0 ** -np.arange(0, 12)  # of the penalty at which no source is left
SWEEPS, TOLERANCE = 10_000, 1e-10
LASSO = "lasso"


@dataclass(frozen=True)
class Weights:
    """Shares of all sources, their sum 1 (0 where no source helps), and the 95 % interval over the targets."""

    share_S: np.ndarray
    low_S: np.ndarray
    high_S: np.ndarray
    token_share_S: np.ndarray | None  # of a selection
    rows_S: np.ndarray | None
    tasks: Mapping[str, np.ndarray]  # of the lasso: the shares for each task alone


@dataclass(frozen=True)
class Mixture:
    """Ratios of sources by name: of each selection, and of the lasso where the matrix is of inner products."""

    sources: tuple[str, ...]
    rows_S: np.ndarray  # of the pool that have a score
    token_S: np.ndarray
    weights: Mapping[str, Weights]
    repeats: int
    notes: tuple[str, ...]

    def as_plain(self) -> dict[str, Any]:
        """Return it as plain JSON: sources, then for each name source -> share, interval and what else is known."""

        def line(one: Weights, s: int) -> dict[str, Any]:
            found: dict[str, Any] = {"share": float(one.share_S[s])}
            if self.repeats:
                found["interval"] = [float(one.low_S[s]), float(one.high_S[s])]
            if one.rows_S is not None and one.token_share_S is not None:
                found |= {"rows": int(one.rows_S[s]), "token_share": float(one.token_share_S[s])}
            return found | ({"tasks": {task: float(of[s]) for task, of in one.tasks.items()}} if one.tasks else {})

        return {
            "sources": {
                source: {"rows": int(self.rows_S[s]), "tokens": int(self.token_S[s])}
                for s, source in enumerate(self.sources)
            },
            "weights": {
                name: {source: line(one, s) for s, source in enumerate(self.sources)}
                for name, one in self.weights.items()
            },
            "repeats": self.repeats,
            "notes": list(self.notes),
        }

    def tables(self) -> list[Table]:
        """Return a table for each name, its largest sources first; at most SHOWN of them."""
        return [self._table(name, one) for name, one in self.weights.items()]

    def _table(self, name: str, one: Weights) -> Table:
        pool_S = self.rows_S / self.rows_S.sum()
        moved = bool((one.high_S > one.low_S).any())  # not by a method that reads no targets
        order = sorted(range(len(self.sources)), key=lambda s: (-one.share_S[s], self.sources[s]))
        lines = []
        for s in order[:SHOWN]:
            interval = f"{percent(one.low_S[s])} to {percent(one.high_S[s])}" if moved else ABSENT
            times = number(one.share_S[s] / pool_S[s])
            last = max(one.tasks, key=lambda task: one.tasks[task][s]) if one.tasks else ""
            if one.rows_S is not None and one.token_share_S is not None:
                cells = (percent(one.token_share_S[s]), count(int(one.rows_S[s])))
            else:
                cells = (last if one.share_S[s] > 0 else ABSENT,)
            lines.append((self.sources[s], percent(pool_S[s]), percent(one.share_S[s]), interval, times, *cells))
        ends = ("of tokens", "rows") if one.rows_S is not None else ("mostly for",)
        title = f"Shares of sources: {name}" + (f", {SHOWN} of {len(order)}" if len(order) > SHOWN else "")
        return Table(title, ("source", "of pool", "share", "95 % interval", "x pool", *ends), tuple(lines))


def mix(
    config: Config, directory: RunDirectory, budget: int | None = None, repeats: int = 10, seed: int = 0
) -> Mixture:
    """Return the ratios of sources that the selections and the targets of a run imply.

    Args:
        budget: only the first so many rows of each selection; None takes all.
        repeats: how often the targets of each task are drawn anew, with replacement, and everything is done again:
            the intervals are +- 1.96 standard deviations over these. 0 gives none. They say how much depends on which
            examples stand for the tasks, and nothing of the warmup's seed (`influray validate --only stability`).

    A selection's shares are those of its rows. The lasso solves, for each task with mean target vector t and source
    means m_s, min over nu >= 0 of |t - sum_s nu_s m_s|^2 / 2 + lambda sum_s nu_s, lambda by cross-validation over the
    task's targets, and takes nu as sampling weights: L1-A-MTRL (Wang, Chen, Jamieson and Du, arXiv 2306.02556), with
    mean gradients for its linear models and nu >= 0, for no source can be trained on less than not at all. Its shares
    are the mean over tasks of each task's shares; tasks to protect and to avoid have no say.

    Raises:
        ConfigError: a budget or a number of repeats that makes no sense; no committed selection has that many rows.
        ArtifactMismatch: the run is not scored.
    """
    if repeats < 0 or repeats == 1:
        raise ConfigError(f"--repeats: found {repeats}, expected 0, or 2 or more for an interval")
    directory.require_made("data", "score")
    matrix = Attribution(directory.attribution)
    facts = Catalogue(directory.data("pool")).facts("source", "tokens")
    sources, source_N = np.unique(np.asarray(facts["source"], object).astype(str), return_inverse=True)
    token_N, total = np.asarray(facts["tokens"], np.int64), len(sources)
    scored_N = matrix.rows
    draws = [_drawn(matrix.groups, np.random.default_rng([seed, r])) for r in range(repeats)]
    weights: dict[str, Weights] = {}
    known = {one.name: one for one in config.selectors}
    again = Reselection(config, directory)
    for name in committed(directory, list(known)):
        row_n = read_table(directory.selection(name), ["rank", "row"])["row"].to_numpy()
        if budget is not None and not 1 <= budget <= len(row_n):
            raise ConfigError(f"--budget: found {budget}, expected 1 to {len(row_n)}, the rows of {name}")
        row_n = row_n[:budget]

        def shares(row_n: np.ndarray) -> np.ndarray:
            return np.bincount(source_N[row_n], minlength=total) / len(row_n)

        again_RS = np.array(
            [shares(again.select(known[name], columns_of(matrix, matrix.groups, c))[:budget]) for c in draws]
        )
        tokens_S = np.bincount(source_N[row_n], weights=token_N[row_n], minlength=total)
        rows_S = np.bincount(source_N[row_n], minlength=total)
        weights[name] = Weights(
            *_interval(shares(row_n), again_RS), tokens_S / max(tokens_S.sum(), 1), rows_S, tasks={}
        )
    notes: tuple[str, ...] = ()
    try:
        weights[LASSO] = _lasso(directory, source_N, total, draws, config.data.roles)
    except ArtifactMismatch as error:
        notes = (f"no {LASSO}: {error}",)
    return Mixture(
        tuple(sources.tolist()),
        np.bincount(source_N[scored_N], minlength=total),
        np.bincount(source_N[scored_N], weights=token_N[scored_N], minlength=total).astype(np.int64),
        weights,
        repeats,
        notes,
    )


def lasso_weights(gram_SS: np.ndarray, toward_S: np.ndarray, penalty: float) -> np.ndarray:
    """Return the nu >= 0, float64 [S], that minimises nu' gram nu / 2 - nu' toward + penalty * sum nu.

    By coordinate descent from 0 (Friedman, Hastie and Tibshirani 2010), each coordinate to its minimum in turn.
    """
    nu_S, pull_S = np.zeros(len(toward_S)), toward_S.astype(np.float64) - penalty
    if pull_S.max() <= 0:
        return nu_S
    live = np.flatnonzero(np.diagonal(gram_SS) > 0)
    for _ in range(SWEEPS):
        moved = 0.0
        for s in live.tolist():
            old = nu_S[s]
            nu_S[s] = max(0.0, old + (pull_S[s] - gram_SS[s] @ nu_S) / gram_SS[s, s])
            moved = max(moved, abs(nu_S[s] - old) * gram_SS[s, s])
        if moved <= TOLERANCE * float(np.abs(pull_S).max()):
            break
    return nu_S


def task_weights(gram_SS: np.ndarray, toward_SC: np.ndarray) -> np.ndarray:
    """Return the shares of sources for one task, float64 [S]; zeros where no source points toward its targets.

    `toward_SC` are the products of source means with the task's C targets. The penalty is the one of RATIOS with the
    least error of fit to targets left out, FOLDS of them; of a single target, a tenth of the largest.
    """
    toward_S = toward_SC.mean(axis=1)
    most = float(toward_S.max())
    if most <= 0:
        return np.zeros(len(toward_S))
    nu_S = lasso_weights(gram_SS, toward_S, most * _ratio(gram_SS, toward_SC))
    return nu_S / nu_S.sum() if nu_S.any() else nu_S


def _ratio(gram_SS: np.ndarray, toward_SC: np.ndarray) -> float:
    targets = toward_SC.shape[1]
    folds = min(FOLDS, targets)
    if folds < 2:
        return 0.1
    error_ratio = np.zeros(len(RATIOS))
    for fold in range(folds):
        out_C = np.arange(targets) % folds == fold
        fit_S, held_S = toward_SC[:, ~out_C].mean(axis=1), toward_SC[:, out_C].mean(axis=1)
        for i, ratio in enumerate(RATIOS):
            nu_S = (
                lasso_weights(gram_SS, fit_S, float(fit_S.max()) * ratio) if fit_S.max() > 0 else np.zeros(len(fit_S))
            )
            error_ratio[i] += out_C.sum() * (nu_S @ gram_SS @ nu_S / 2 - nu_S @ held_S)
    return float(RATIOS[error_ratio.argmin()])


def _lasso(
    directory: RunDirectory, source_N: np.ndarray, sources: int, draws: Sequence[np.ndarray], roles: Mapping[str, str]
) -> Weights:
    """Return the lasso's shares. Raises ArtifactMismatch where there are no vectors whose products are the matrix."""
    pool = PoolVectors(directory)
    mean_SF, seen_S = np.zeros((sources, pool.dimension)), np.bincount(source_N[pool.rows], minlength=sources)
    for start, vector_BF in pool.blocks(BLOCK_ROWS):
        of_B = source_N[pool.rows[start : start + len(vector_BF)]]
        present, place_B = np.unique(of_B, return_inverse=True)
        onto_pB = np.equal(np.arange(len(present))[:, None], place_B).astype(np.float32)
        mean_SF[present] += onto_pB @ vector_BF
    mean_SF /= np.maximum(seen_S, 1)[:, None]
    _, target_TF = target_vectors(directory)
    gram_SS, toward_ST = mean_SF @ mean_SF.T, mean_SF @ target_TF.T.astype(np.float64)
    groups = np.asarray(Attribution(directory.attribution).groups, object)
    tasks = [task for task in dict.fromkeys(groups.tolist()) if roles.get(task, "seek") == "seek"]

    def by_task(column_C: np.ndarray) -> Iterator[np.ndarray]:
        for task in tasks:
            yield task_weights(gram_SS, toward_ST[:, column_C[groups[column_C] == task]])

    found = dict(zip(tasks, by_task(np.arange(len(groups))), strict=True))
    again_RS = np.array([_even(list(by_task(column_C))) for column_C in draws])
    return Weights(*_interval(_even(list(found.values())), again_RS), token_share_S=None, rows_S=None, tasks=found)


def _even(share_GS: Sequence[np.ndarray]) -> np.ndarray:
    """Return the mean of the tasks' shares; a task that no source helps has no say."""
    helped = [share_S for share_S in share_GS if share_S.any()]
    return np.mean(helped, axis=0) if helped else np.zeros_like(share_GS[0])


def _drawn(groups: Sequence[str], random: np.random.Generator) -> np.ndarray:
    """Return as many columns of each task as it has, drawn with replacement, task after task."""
    group_T = np.asarray(groups, object)
    of_task = [np.flatnonzero(group_T == task) for task in dict.fromkeys(groups)]
    return np.concatenate([np.sort(random.choice(column_C, len(column_C))) for column_C in of_task])


def _interval(share_S: np.ndarray, again_RS: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    spread_S = again_RS.std(axis=0, ddof=1) if len(again_RS) > 1 else np.zeros_like(share_S)
    return share_S, np.clip(share_S - 1.96 * spread_S, 0, 1), np.clip(share_S + 1.96 * spread_S, 0, 1)
