"""stability: the same run with other seeds and with half of its targets, and what of it stays as it was.

A warmup with another seed is a run of its own under RUN/validate/variants, up to its matrix; another matrix of the
projection shares the run's warmup. No model is tuned: what is compared are scores and selections.

Shape suffixes: N rows, n sampled rows, T target columns, G tasks, V variants.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np

from influray.config import SelectorConfig
from influray.config_messages import near
from influray.config_validate import OWN
from influray.evaluation.overlap import jaccard
from influray.evaluation.rank_correlation import spearman
from influray.evaluation.stability import mean_interval, means_by_label, times_chosen
from influray.protocols import ConfigError
from influray.registry import WARMED, featurizer_reads
from influray.runtime.retraining_worker import Retraining
from influray.steps.context import StepContext
from influray.steps.data import data
from influray.steps.featurize import featurize
from influray.steps.score import score
from influray.steps.train import warmup
from influray.store.artifact import hash_bytes
from influray.store.attribution import Attribution
from influray.store.column_view import ColumnView, columns_of
from influray.store.run_directory import RunDirectory
from influray.validation import draws
from influray.validation.reselection import Reselection
from influray.validation.scorers import Judged, matrix_of, own
from influray.validation.setting import Setting

SAMPLE = 20_000  # rows that rank correlations are taken over


def check(setting: Setting) -> None:
    """Raise ConfigError where there is no variant to compare with, or no selector of a name."""
    selectors(setting)
    if not _seeds(setting) and not setting.config.stability.halves:
        raise ConfigError(
            "validate.stability: nothing varies; the run's features come from no warmup and no projection whose seed "
            "could be another, so set halves to true"
        )


def result(setting: Setting, done: list[Retraining]) -> dict[str, Any]:
    """Return how scores and selections agree over the variants, as plain JSON."""
    context, note = setting.context, setting.context.progress.current.note
    mine = Attribution(context.directory.attribution)
    matrices: dict[str, Attribution | ColumnView] = {OWN: mine}
    for name, (kind, seed) in _seeds(setting).items():
        note(f"stability: {name}")
        matrices[name] = _projected(context, seed) if kind == "projection" else _warmed(context, seed)
    if setting.config.stability.halves:
        for half in (0, 1):
            matrices[f"half {half + 1} of the targets"] = columns_of(mine, mine.groups, halves(mine.groups)[half])
    sample_n = np.sort(draws.candidates(mine.rows, SAMPLE, setting.config.seed))
    for matrix in matrices.values():
        sample_n = np.intersect1d(sample_n, matrix.rows, assume_unique=True)
    tasks = tuple(dict.fromkeys(mine.groups))
    means = {name: task_means(matrix, sample_n, tasks) for name, matrix in matrices.items()}
    variants = [_variant(name, matrices, means, sample_n, tasks) for name in list(matrices)[1:]]
    chosen, again = [], Reselection(context.config, context.directory)
    for selector in selectors(setting):
        note(f"stability: {selector.name}")
        chosen.append(_chosen(selector, again, matrices))
    source_n = np.asarray(context.catalogue("pool").facts("source")["source"], object)[sample_n]
    seeded = [OWN, *_seeds(setting)]
    return {
        "rows_compared": len(sample_n),
        "variants": variants,
        "halves_agree": _halves_agree(means, mine.groups) if setting.config.stability.halves else None,
        "selectors": chosen,
        "sources": _sources([means[name] for name in seeded], source_n.tolist(), tasks),
    }


def selectors(setting: Setting) -> list[SelectorConfig]:
    """Return the selectors whose choices are compared. Raises ConfigError where there is none of a name."""
    known = {one.name: one for one in setting.context.config.selectors}
    wanted = setting.config.stability.selectors
    for name in () if wanted == "all" else wanted:
        if name not in known:
            raise ConfigError(
                f"validate.stability.selectors: {name!r} is no selector of the run{near(name, known)} "
                f"(known: {', '.join(known)})"
            )
    return list(known.values()) if wanted == "all" else [known[name] for name in wanted]


def halves(groups: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
    """Return two halves of the columns: a task's first, third .. and its others; the only one of a task is in both."""
    seen: Counter[str] = Counter()
    sides: tuple[list[int], list[int]] = [], []
    for j, group in enumerate(groups):
        sides[seen[group] % 2].append(j)
        seen[group] += 1
        if groups.count(group) == 1:
            sides[1].append(j)
    return np.array(sides[0], np.int64), np.array(sides[1], np.int64)


def task_means(matrix: Attribution | ColumnView, row_n: np.ndarray, tasks: Sequence[str]) -> np.ndarray:
    """Return the mean over a task's columns of the standardised influence of rows, float64 [n, G]; NaN without any."""
    stats, score_nT = matrix.stats, matrix.gather(row_n).astype(np.float64)
    found = np.full((len(row_n), len(tasks)), np.nan)
    for g, task in enumerate(tasks):
        member_T = stats.used_T & np.array([group == task for group in matrix.groups])
        if member_T.any():
            z_nT = (score_nT[:, member_T] - stats.mean_T[member_T]) / stats.std_T[member_T]
            found[:, g] = z_nT.mean(axis=1)
    return found


def _seeds(setting: Setting) -> dict[str, tuple[str, int]]:
    """Return the variants of seeds that the run's features can have: name -> (what varies, seed)."""
    config, wanted = setting.context.config, setting.config.stability
    reads = featurizer_reads(config.features.featurizer)
    if reads not in WARMED:
        return {}
    found = {} if config.warmup.checkpoints else {f"warmup seed {s}": ("warmup", s) for s in wanted.warmup_seeds}
    if reads == "checkpoints":
        found |= {f"projection seed {s}": ("projection", s) for s in wanted.projection_seeds}
    here = {f"warmup seed {config.warmup.seed}", f"projection seed {config.features.projector.seed}"}
    return {name: variant for name, variant in found.items() if name not in here}


def _projected(context: StepContext, seed: int) -> Attribution:
    """Return the matrix of the run's own scorer over features of another projection."""
    mine = own(context.config)
    features = {"projector": {"seed": seed}}
    return matrix_of(context, Judged(f"projection-seed-{seed}", mine.scorer, mine.options, features))


def _warmed(context: StepContext, seed: int) -> Attribution:
    """Return the matrix of the run with another seed of its warmup."""
    config = context.config
    changed = config.model_copy(update={"warmup": config.warmup.model_copy(update={"seed": seed})})
    directory = RunDirectory(context.directory.validation / "variants" / f"warmup-seed-{seed}")
    beside = context.beside(changed, directory)
    for step in (data, warmup, featurize, score):
        step(beside)
    return Attribution(directory.attribution)


def _variant(
    name: str,
    matrices: dict[str, Attribution | ColumnView],
    means: dict[str, np.ndarray],
    sample_n: np.ndarray,
    tasks: Sequence[str],
) -> dict[str, Any]:
    """Return how a variant's scores agree with the run's: by target, and of the means of tasks."""
    mine, other = matrices[OWN], matrices[name]
    by_task = dict(zip(tasks, spearman(means[OWN], means[name]).tolist(), strict=True))
    found: dict[str, Any] = {"name": name, "tasks": by_task, "value": float(np.mean(list(by_task.values())))}
    if isinstance(mine, Attribution) and isinstance(other, Attribution) and mine.target_ids == other.target_ids:
        rho_T = spearman(mine.gather(sample_n), other.gather(sample_n))
        found["by_target"] = float(np.mean([rho_T[[group == task for group in mine.groups]].mean() for task in tasks]))
    return found


def _halves_agree(means: dict[str, np.ndarray], groups: Sequence[str]) -> dict[str, float | None]:
    """Return Spearman's rho between the means of both halves of each task's targets, None where there is one."""
    one, other = (means[f"half {half} of the targets"] for half in (1, 2))
    counts = Counter(groups)
    rho = zip(counts, spearman(one, other).tolist(), strict=True)
    return {task: value if counts[task] > 1 else None for task, value in rho}


def _chosen(
    selector: SelectorConfig, again: Reselection, matrices: dict[str, Attribution | ColumnView]
) -> dict[str, Any]:
    """Return how often a selector chooses the same rows over the variants."""
    rows = {name: again.select(selector, matrix) for name, matrix in matrices.items()}
    times = times_chosen([found.tolist() for found in rows.values()])
    mine = rows[OWN].tolist()
    return {
        "name": selector.name,
        "rows": len(mine),
        "variants": len(rows),
        "overlap": {name: jaccard(mine, found.tolist()) for name, found in rows.items() if name != OWN},
        # Of the run's own rows: how many were chosen in one, in two .. of the variants, its own included.
        "chosen_in": [sum(times[row] == n for row in mine) for n in range(1, len(rows) + 1)],
        "times": [times[row] for row in mine],  # in order of choice
        "digest": hash_bytes(rows[OWN].astype(np.int64).tobytes()),  # of the rows that they are of
    }


def _sources(mean_V: Sequence[np.ndarray], source_n: Sequence[str], tasks: Sequence[str]) -> list[dict[str, Any]]:
    """Return the mean standardised influence of each source on each task, with its interval over the seeds."""
    by_source = [means_by_label(mean_nG, source_n) for mean_nG in mean_V]
    found = []
    for source in by_source[0]:
        for g, task in enumerate(tasks):
            values = [float(one[source][g]) for one in by_source]
            interval = mean_interval(values)
            mean = float(np.mean(values))
            found.append({"source": source, "task": task, "value": mean, "interval": interval and list(interval)})
    return found
