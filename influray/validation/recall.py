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
from influray.validation.setting import Setting


def check(setting: Setting) -> None:
    """Raise ConfigError where no task has a known answer, or ids or tasks that are named do not exist."""
    relevant_rows(setting)


def result(setting: Setting, done: list[Retraining]) -> dict[str, Any]:
    """Return a line for every scorer and task with a known answer, as plain JSON."""
    known, lines = relevant_rows(setting), []
    ks = [k for k in setting.config.recall.k if k <= len(setting.candidates)]
    for one in setting.scorers:
        score_NG = setting.task_scores(one)
        score_NG = np.nan_to_num(score_NG, nan=np.nan_to_num(score_NG).min(initial=0) - 1)  # without one: below all
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
