"""From numbers per example to numbers per task, per model and over seeds.

The tasks count alike, whatever their size: the macro average is the mean over tasks, the spread their standard
deviation (ddof 0), and the worst task the one of highest loss or lowest match.
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

METRICS = ("loss", "exact_match", "teacher_forced")
HIGHER_IS_BETTER = {"loss": False, "exact_match": True, "teacher_forced": True}


def summarise(
    tasks: Sequence[str], losses: np.ndarray, teacher_forced: np.ndarray, exact_matches: Sequence[bool | None]
) -> dict[str, Any]:
    """Return the evaluation of one model as plain JSON.

    Args:
        tasks: of each example; tasks are reported in the order of their first example.
        losses: mean loss of each example.
        teacher_forced: whether greedy decoding would write each answer exactly.
        exact_matches: whether the generated text matches; None where the record has no answer to compare with.

    Returns:
        {"tasks": {task: {"loss", "exact_match", "teacher_forced", "n", "answered"}}, "macro": {metric: value},
        "worst": {metric: {"task", "value"}}, "spread": {metric: value}}; a metric that no example has is None.
    """
    found: dict[str, dict[str, Any]] = {}
    for task in dict.fromkeys(tasks):
        members = [i for i, name in enumerate(tasks) if name == task]
        answered = [bool(exact_matches[i]) for i in members if exact_matches[i] is not None]
        found[task] = {
            "loss": float(np.mean(losses[members])),
            "exact_match": statistics.fmean(answered) if answered else None,
            "teacher_forced": float(np.mean(teacher_forced[members])),
            "n": len(members),
            "answered": len(answered),
        }
    return {"tasks": found, **over_tasks(found)}


def over_tasks(found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Return macro average, worst task and spread of each metric over the tasks that have it."""
    result: dict[str, dict[str, Any]] = {"macro": {}, "worst": {}, "spread": {}}
    for metric in METRICS:
        values = {task: facts[metric] for task, facts in found.items() if facts[metric] is not None}
        if not values:
            result["macro"][metric] = result["worst"][metric] = result["spread"][metric] = None
            continue
        worst = (min if HIGHER_IS_BETTER[metric] else max)(values, key=lambda task: values[task])
        result["macro"][metric] = statistics.fmean(values.values())
        result["worst"][metric] = {"task": worst, "value": values[worst]}
        result["spread"][metric] = statistics.pstdev(values.values())
    return result


def over_seeds(evaluations: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the mean over seeds of each task's numbers, and how far the macro averages differ between seeds.

    Args:
        evaluations: of one selection, one per seed, as `summarise` returns them; all of the same tasks.

    Returns:
        As `summarise`, of the means, and "seeds": {metric: {"n", "mean", "std" (ddof 1, None for one seed), "min",
        "max"}} of the macro averages.
    """
    tasks: dict[str, dict[str, Any]] = {}
    for task, facts in evaluations[0]["tasks"].items():
        columns = {metric: [one["tasks"][task][metric] for one in evaluations] for metric in METRICS}
        means = {metric: _mean(values) for metric, values in columns.items()}
        tasks[task] = {**means, "n": facts["n"], "answered": facts["answered"]}
    seeds: dict[str, Any] = {}
    for metric in METRICS:
        values = [one["macro"][metric] for one in evaluations]
        if None in values:
            seeds[metric] = None
            continue
        std = statistics.stdev(values) if len(values) > 1 else None
        seeds[metric] = {"n": len(values), "mean": _mean(values), "std": std, "min": min(values), "max": max(values)}
    return {"tasks": tasks, **over_tasks(tasks), "seeds": seeds}


def _mean(values: Sequence[float | None]) -> float | None:
    numbers = [value for value in values if value is not None]
    return statistics.fmean(numbers) if len(numbers) == len(values) else None
