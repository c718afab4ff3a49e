"""recall: rows that are known to be right for a task, and how high each scorer places them.

They are rows of a task's `expected_sources`, or the ids that `validate.recall.ids` names. A row's score for a task is
the mean over the task's targets of its standardised influence. No retraining is needed.

Shape suffixes: N candidate rows, T target records, G tasks, B rows of a block.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from influray.config_messages import near
from influray.evaluation.known_answer import auc
from influray.evaluation.retrieval import measure_retrieval
from influray.protocols import ConfigError
from influray.runtime.retraining_worker import Retraining
from influray.validation.scorers import Judged
from influray.validation.setting import Setting


def check(setting: Setting) -> None:
    """Raise ConfigError where no task has a known answer, or ids or tasks that are named do not exist."""
    relevant_rows(setting)


def result(setting: Setting, done: list[Retraining]) -> dict[str, Any]:
    """Return a line for every scorer and task with a known answer, as plain JSON."""
    known, lines = relevant_rows(setting), []
    ks = [k for k in setting.config.recall.k if k <= len(setting.candidates)]
    for one in setting.scorers:
        score_NG = task_scores(setting, one)
        tasks = {}
        for task, relevant_N in known.items():
            score_N = score_NG[:, setting.task_names.index(task)]
            found = measure_retrieval(score_N, relevant_N, ks)
            tasks[task] = {
                "auc": auc(score_N[relevant_N], score_N[~relevant_N]),
                "average_precision": found.average_precision,
                "reciprocal_rank": found.reciprocal_rank,
                "recall": list(found.recall),
            }
        lines.append({"name": one.name, "what": one.label, "tasks": tasks})
    relevant = {task: int(relevant_N.sum()) for task, relevant_N in known.items()}
    return {"k": ks, "relevant": relevant, "scorers": lines}


def relevant_rows(setting: Setting) -> dict[str, np.ndarray]:
    """Return which candidates are known to be right, bool [N], by task; neither none nor all of them are.

    Raises:
        ConfigError: as `check`.
    """
    config = setting.context.config
    ids = setting.config.recall.ids
    for task in ids:
        if task not in setting.task_names:
            raise ConfigError(
                f"validate.recall.ids.{task}: no task is called so{near(task, setting.task_names)} "
                f"(known: {', '.join(setting.task_names)})"
            )
    facts = setting.context.catalogue("pool").facts("id", "source")
    id_N, source_N = (np.asarray(facts[name], object)[setting.candidates] for name in ("id", "source"))
    found = {}
    for task in setting.task_names:
        wanted = set(config.data.targets[task].expected_sources)
        relevant_N = np.array([source in wanted for source in source_N], bool)
        if given := set(ids.get(task, ())):
            if lost := sorted(given - set(id_N)):
                raise ConfigError(f"validate.recall.ids.{task}: no candidate row has the id {lost[0]!r}")
            relevant_N |= np.array([one in given for one in id_N], bool)
        if 0 < relevant_N.sum() < len(relevant_N):
            found[task] = relevant_N
    if not found:
        raise ConfigError(
            "validate.recall: no task has a known answer; name data.targets.TASK.expected_sources, sources of the pool "
            "that are known to be of the task's kind, or validate.recall.ids"
        )
    return found


def task_scores(setting: Setting, one: Judged) -> np.ndarray:
    """Return the mean over a task's targets of each candidate's standardised score, float64 [N, G].

    A target whose scores are all equal says nothing and is left out; a row without a score stands below all others.
    """
    N, T = len(setting.candidates), len(setting.tasks)
    count_T, sum_T, square_T = np.zeros((3, T))
    shift_T = None  # of the first block: it takes what the squares would lose to the mean
    for _, score_BT in setting.blocks(one, setting.candidates):
        finite_BT = np.isfinite(score_BT)
        if shift_T is None:
            shift_T = np.nan_to_num(np.where(finite_BT, score_BT, 0).mean(axis=0))
        off_BT = np.where(finite_BT, score_BT - shift_T, 0)
        count_T += finite_BT.sum(axis=0)
        sum_T += off_BT.sum(axis=0)
        square_T += (off_BT**2).sum(axis=0)
    mean_T = sum_T / np.maximum(count_T, 1)
    std_T = np.sqrt(np.maximum(square_T / np.maximum(count_T, 1) - mean_T**2, 0))
    used_T = std_T > 1e-9 * np.maximum(std_T.max(initial=0), np.finfo(np.float64).tiny)
    score_NG = np.full((N, len(setting.task_names)), -np.inf)
    for place_B, score_BT in setting.blocks(one, setting.candidates):
        z_BT = (score_BT - (0 if shift_T is None else shift_T) - mean_T) / np.where(used_T, std_T, 1)
        for g, task in enumerate(setting.task_names):
            member_T = used_T & np.array([name == task for name in setting.tasks])
            score_NG[place_B, g] = z_BT[:, member_T].mean(axis=1) if member_T.any() else 0.0
    score_NG[~np.isfinite(score_NG)] = -np.inf
    lowest = np.where(np.isfinite(score_NG), score_NG, np.inf).min(initial=0)
    return np.where(np.isfinite(score_NG), score_NG, lowest - 1)
