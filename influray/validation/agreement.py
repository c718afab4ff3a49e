"""Scorers against measured effects: one line a scorer, for targets and for held-out test records.

Shape suffixes: M subsets, N candidate rows, T target records, U test records, S seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from influray.evaluation.lds import Agreement, ceiling, lds, predicted_effects, seed_agreement
from influray.evaluation.rank_correlation import percentile_interval
from influray.validation.setting import Setting


def judge(
    setting: Setting,
    candidate_N: np.ndarray,
    member_MN: np.ndarray,
    effect_SM: dict[str, np.ndarray],
    note: Callable[[str], None] = lambda text: None,
) -> dict[str, Any]:
    """Return how every scorer's sums agree with measured effects, as plain JSON.

    `effect_SM` holds for "target" and, where there are any, "test" the effects [S, M, records], larger being better.
    A test record is foretold by the mean of its task's columns.
    """
    measured = {split: effects.mean(axis=0) for split, effects in effect_SM.items()}
    tasks = {"target": setting.tasks, "test": setting.test_tasks}
    seed, lines, first = setting.config.seed, [], None
    for one in setting.scorers:
        note(one.name)
        predicted_MT = predicted_effects(setting.blocks(one, candidate_N), member_MN, len(setting.tasks))
        predicted = {"target": predicted_MT, "test": _for_tests(predicted_MT, setting.tasks, setting.test_tasks)}
        found = {split: lds(predicted[split], measured[split], tasks[split], seed) for split in measured}
        first = first or found
        line: dict[str, Any] = {"name": one.name, "what": one.label}
        for split, agreement in found.items():
            line[split] = {**plain(agreement), "less_own": _difference(agreement, first[split])}
        lines.append(line)
    return {"scorers": lines, "seeds": {split: _seeds(effects, tasks[split]) for split, effects in effect_SM.items()}}


def plain(found: Agreement) -> dict[str, Any]:
    """Return an agreement as JSON takes it."""
    tasks = {
        task: {"value": value, "interval": list(found.task_intervals[task])} for task, value in found.tasks.items()
    }
    return {"value": found.mean, "interval": list(found.interval), "tasks": tasks}


def _difference(found: Agreement, own: Agreement) -> dict[str, Any]:
    """Return how much better it is than the run's own scorer, by the same bootstrap samples for both."""
    return {"value": found.mean - own.mean, "interval": list(percentile_interval(found.samples - own.samples))}


def _seeds(effect_SMT: np.ndarray, tasks: Sequence[str]) -> dict[str, Any] | None:
    """Return the agreement of halves of the seeds, over tasks, and the most that a scorer can be expected to reach."""
    agreement_T = seed_agreement(effect_SMT)
    if agreement_T is None:
        return None
    names = list(dict.fromkeys(tasks))
    by_task = {name: float(agreement_T[[task == name for task in tasks]].mean()) for name in names}
    value = float(np.mean(list(by_task.values())))
    return {"halves": value, "tasks": by_task, "ceiling": ceiling(value)}


def _for_tests(predicted_MT: np.ndarray, tasks: Sequence[str], test_tasks: Sequence[str]) -> np.ndarray:
    """Return the mean of a task's columns for each of its test records, [M, U]."""
    means = {task: predicted_MT[:, [one == task for one in tasks]].mean(axis=1) for task in dict.fromkeys(test_tasks)}
    return np.stack([means[task] for task in test_tasks], axis=1) if test_tasks else np.zeros((len(predicted_MT), 0))
